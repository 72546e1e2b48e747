//! End-to-end tests: the two binaries as a user runs them, with a real Spark, a real upstream and real clients.
//!
//! One module for each set of real parts that its tests need; `tests/run` leaves a module out, and says so, when a
//! part cannot be had:
//!
//! | module | needs |
//! | --- | --- |
//! | `burst` | `docker-registry` |
//! | `skopeo` | an image (below), skopeo |
//! | `faults`, `challenge` | root, containerd |
//! | `chunked` | root, `docker-registry`, podman and skopeo of sid, podman, buildah |
//! | `closed` | root, skopeo, podman, buildah, umoci, containerd, runc |
//! | `matrix::CLIENT::SUITE` | root, the program of that suite (`tests/runtimes.sh`) |
//! | `page` | chromium |
//! | `podman`, `buildah` | an image, root, the program |
//! | `dockerfiles` | root, buildah, podman, mmdebstrap the first time |
//! | `programs` | root, `docker-registry`, podman, uv and a package index |
//! | `containerd` | an image, root, containerd, runc |
//! | `runtime` | an image, root, containerd, runc, iproute2, podman, dockerd |
//! | `spark` | an image, root, containerd, runc, uv and a package index |
//! | `class_data` | an image, root, containerd, runc |
//!
//! An image needs `docker-registry` and the fixtures of the kit, which need root and `mmdebstrap` the first time.

mod support;
mod trust;

mod buildah;
mod burst;
mod challenge;
mod chunked;
mod class_data;
mod closed;
mod containerd;
mod dockerfiles;
mod faults;
mod matrix;
mod page;
mod podman;
mod programs;
mod runtime;
mod skopeo;
mod spark;
