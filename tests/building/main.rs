//! `hearth`, run as its users run it.

mod build;
mod crash;
mod damage;
mod entrypoint;
mod guides;
mod layering;
mod lock;
mod matrix;
mod maven;
mod objects;
mod output;
mod overlays;
mod property;
mod push;
mod readers;
mod resolution;
mod sbom;
mod wheels;
