//! `hearth`, run as its users run it.

mod build;
mod bytecode;
mod class_data;
mod convert;
mod crash;
mod damage;
mod downloads;
mod entrypoint;
mod guides;
mod java;
mod layering;
mod lock;
mod matrix;
mod maven;
mod objects;
mod output;
mod overlays;
mod packages;
mod plain;
mod property;
mod push;
mod readers;
mod readme;
mod resolution;
mod sbom;
mod wheels;

/// The archive in a layer, whatever its compression.
fn archive_of(layer: &std::path::Path) -> Box<dyn std::io::Read + Send> {
    let file = std::fs::File::open(layer).expect("it was written");
    oci::archive::decompressed(file).expect("a compression that layers have")
}
