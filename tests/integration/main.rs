//! Integration tests.

mod archives;
mod build;
mod build_crash;
mod build_damage;
mod build_entrypoint;
mod build_fixture;
mod build_lock;
mod build_matrix;
mod build_maven;
mod build_objects;
mod build_output;
mod build_overlays;
mod build_property;
mod build_push;
mod build_readers;
mod build_sbom;
mod build_wheels;
mod cli;
mod cluster;
mod images;
mod layering;
mod manifests;
mod mirror;
mod peers;
mod prepull;
mod registry;
