//! What the agent and the builder share of the OCI specifications and of registries, once.
//!
//! | module | owns |
//! | --- | --- |
//! | [`digest`] | content digests: parsing, hashing, verification |
//! | [`name`], [`image`] | registries, repositories, tags; names of images |
//! | [`media_type`], [`layout`] | media types of manifests, configurations and layers; names within a layout |
//! | [`docker`], [`helper`] | a Docker `config.json`, and the programs that it names |
//! | [`challenge`], [`token`] | what a registry asks for, what a token endpoint answers, and which hosts may see credentials |
//! | [`retry`] | the wait that a registry asks for |
//! | [`signature`] | signatures of images by keys, as cosign and Sigstore write them |
//! | [`archive`] | untrusted tar streams: their compression, and bounds on what they make us read |
//!
//! Nothing here knows the agent, the builder or an HTTP client. The only I/O is that of [`helper`] and of the readers that
//! [`archive`] is given.

pub mod archive;
pub mod challenge;
pub mod digest;
pub mod docker;
pub mod helper;
pub mod image;
pub mod layout;
pub mod media_type;
pub mod name;
pub mod retry;
pub mod signature;
pub mod token;

pub use digest::{Algorithm, Digest, DigestError, Hasher, Hashing, Mismatch};
pub use docker::{CredentialsError, DockerConfig, Login};
pub use image::ImageName;
pub use name::{NameError, Reference, RegistryHost, RepoName, Repository, Tag};
