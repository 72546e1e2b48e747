//! The keys of `hearth.yaml` as they are written: shapes only, no meaning. The JSON schema comes from here, so the
//! comments on the keys are what an editor shows.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

/// A value with its place in the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub(super) struct At<T>(Spanned<T>);

impl<T> At<T> {
    pub(super) fn at(&self) -> Location {
        self.0.referenced
    }

    pub(super) fn value(&self) -> &T {
        &self.0.value
    }

    /// Another value at the same place.
    pub(super) fn with(&self, value: T) -> Self {
        Self(Spanned { value, referenced: self.0.referenced, defined: self.0.defined })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

/// Defines the top level, lines and variants: what they share is written once and merged as an [`Overlay`].
macro_rules! overlays {
    ($shared:tt $($(#[$meta:meta])* struct $name:ident $own:tt)*) => {
        overlays!(@overlay $shared);
        $(overlays!(@with $shared $(#[$meta])* struct $name $own);)*
    };
    (@overlay { $($(#[$shared_meta:meta])* $shared:ident: $shared_type:ty,)* }) => {
        /// What can be said for all images, for a line, and for a variant.
        #[derive(Debug, Clone, Default)]
        pub(super) struct Overlay { $(pub(super) $shared: $shared_type,)* }
    };
    (@with { $($(#[$shared_meta:meta])* $shared:ident: $shared_type:ty,)* }
     $(#[$meta:meta])* struct $name:ident { $($(#[$own_meta:meta])* $own:ident: $own_type:ty,)* }) => {
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        $(#[$meta])*
        pub(super) struct $name {
            $($(#[$own_meta])* pub(super) $own: $own_type,)*
            $($(#[$shared_meta])* #[serde(default)] pub(super) $shared: $shared_type,)*
        }

        impl $name {
            /// The shared part.
            pub(super) fn overlay(&self) -> Overlay {
                Overlay { $($shared: self.$shared.clone(),)* }
            }
        }
    };
}

overlays! {
    {
        /// More tags of the images; an overlay adds its own.
        tags: Vec<At<String>>,
        /// The base image.
        base: Option<At<BaseKeys>>,
        /// Where Spark comes from, and Java and Python when the base has none.
        sources: Option<SourcesKeys>,
        /// Environment variables of the image; an overlay adds to them and its values win.
        env: BTreeMap<String, At<String>>,
        /// Labels of the image, likewise.
        labels: BTreeMap<String, At<String>>,
        /// Files and directories to put into the image; an overlay adds its own.
        files: Vec<At<FileKeys>>,
        /// JARs by Maven coordinates.
        jars: Option<At<JarsKeys>>,
        /// Python packages.
        wheels: Option<At<WheelsKeys>>,
        /// Whether Python files get bytecode, compiled by the image's own Python; default: true.
        bytecode: Option<bool>,
        /// How Java starts.
        jvm: Option<At<JvmKeys>>,
        /// The user that containers run as; default: 185, without Spark that of the base.
        user: Option<At<String>>,
        /// The program that containers start with; default: Spark's entry point, without Spark that of the base.
        entrypoint: Option<Vec<At<String>>>,
        /// Arguments of the entry point when a container is started with none.
        command: Option<Vec<At<String>>>,
        /// Where containers start; default: `/opt/spark/work-dir`, without Spark that of the base.
        working_directory: Option<At<String>>,
        /// Ports that containers listen on, such as `8080` or `53/udp`; an overlay adds its own.
        ports: Vec<At<String>>,
    }

    /// A matrix of images, with Spark or without.
    #[schemars(rename = "hearth.yaml")]
    struct Document {
        /// `hearth.dev/v1alpha1`
        api_version: At<String>,
        /// `ImageMatrix`
        kind: At<String>,
        /// Where the images are pushed: `host/path` without a tag.
        repository: At<String>,
        /// The tag of an image, with placeholders such as `{spark}`.
        tag: At<String>,
        /// What is combined with what; without Spark there is nothing to combine.
        #[serde(default)]
        axes: Option<At<AxesKeys>>,
        /// Combinations that are left out.
        #[serde(default)]
        exclude: Vec<At<WhenKeys>>,
        /// Combinations beside the product of the axes.
        #[serde(default)]
        include: Vec<At<CellKeys>>,
        /// What is different where a condition on the axes holds; later ones win.
        #[serde(default)]
        lines: Vec<Line>,
        /// Named variants: one more axis, whose overlays win over lines.
        #[serde(default)]
        variants: BTreeMap<String, Variant>,
        /// How layers are compressed: `zstd:chunked` (the default: zstd with a table of contents, from which podman and
        /// CRI-O fetch only what they lack), `zstd`, or `gzip` for runtimes older than containerd 1.5, Docker 23 and
        /// CRI-O 1.20.
        #[serde(default)]
        compression: Option<At<String>>,
        /// Whether combinations that nobody vouches for are built.
        #[serde(default)]
        allow_untested: bool,
        /// The platform, when there is one only: `linux/amd64` or `linux/arm64`; default: this machine's.
        #[serde(default)]
        platform: Option<At<String>>,
    }

    /// What is different where a condition holds.
    struct Line {
        /// The condition.
        when: At<WhenKeys>,
    }

    /// A variant.
    struct Variant {
        /// Only these cells have it.
        #[serde(default)]
        when: Option<At<WhenKeys>>,
    }
}

impl Document {
    /// Where the axes stand, or would.
    pub(super) fn axes_at(&self) -> Location {
        self.axes.as_ref().map_or(self.kind.at(), At::at)
    }
}

/// A condition on the axes, such as `{ spark: ">=3.5 <4", java: "17 | 21" }`: a space means "and", `|` means "or",
/// `!` means "not", and `3.5` holds for every 3.5.x.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WhenKeys {
    pub(super) spark: Option<At<String>>,
    pub(super) scala: Option<At<String>>,
    pub(super) java: Option<At<String>>,
    pub(super) python: Option<At<String>>,
    pub(super) platform: Option<At<String>>,
    pub(super) variant: Option<At<String>>,
}

/// One combination.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CellKeys {
    pub(super) spark: Option<At<String>>,
    pub(super) java: Option<At<String>>,
    pub(super) scala: Option<At<String>>,
    pub(super) python: Option<At<String>>,
    pub(super) variant: Option<At<String>>,
}

/// Exactly one of `rootfs`, `layout` and `image`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BaseKeys {
    /// A root file system archive: tar, plain or with gzip or zstd.
    pub(super) rootfs: Option<At<String>>,
    /// An OCI image layout.
    pub(super) layout: Option<At<String>>,
    /// An image of a registry; `scratch` is an empty one.
    pub(super) image: Option<At<String>>,
    /// Which image of the layout.
    pub(super) r#ref: Option<At<String>>,
}

/// The values of the axes.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AxesKeys {
    /// Spark versions such as `3.5.9`; left out for images without Spark.
    pub(super) spark: Option<Vec<At<String>>>,
    /// Java major versions such as `17`; Spark needs them.
    pub(super) java: Option<Vec<At<String>>>,
    /// Scala versions such as `2.12`.
    #[serde(default)]
    pub(super) scala: Vec<At<String>>,
    /// Python versions such as `3.11`.
    #[serde(default)]
    pub(super) python: Vec<At<String>>,
    /// Platforms: `linux/amd64`, `linux/arm64`. Several become one index per tag.
    #[serde(default)]
    pub(super) platform: Vec<At<String>>,
}

/// Where programs come from.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SourcesKeys {
    /// Spark: a release archive or the source distribution of the `pyspark` package.
    pub(super) spark: Option<At<ArchiveKeys>>,
    /// A Java runtime, laid out in `/opt/java`; without it the base has to have one.
    pub(super) java: Option<At<ArchiveKeys>>,
    /// A relocatable Python, laid out in `/opt/python`; without it the base has to have one.
    pub(super) python: Option<At<ArchiveKeys>>,
}

/// Exactly one of `path`, `url` and `pypi`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ArchiveKeys {
    /// A file.
    pub(super) path: Option<At<String>>,
    /// A file on a server; needs a checksum.
    pub(super) url: Option<At<String>>,
    /// The package `pyspark`, found with `uv` through your package index.
    pub(super) pypi: Option<At<String>>,
    /// SHA-256 of the file.
    pub(super) sha256: Option<At<String>>,
    /// SHA-512 of the file.
    pub(super) sha512: Option<At<String>>,
}

/// A file, a directory or a text that is put into the image.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FileKeys {
    /// Where it goes: an absolute path; with a slash at its end the directory that the file is put into. Without a file it is
    /// an empty directory.
    pub(super) to: At<String>,
    /// A file or directory.
    pub(super) path: Option<At<String>>,
    /// A file on a server; needs a checksum.
    pub(super) url: Option<At<String>>,
    /// The content itself.
    pub(super) text: Option<At<String>>,
    /// SHA-256 of the file.
    pub(super) sha256: Option<At<String>>,
    /// SHA-512 of the file.
    pub(super) sha512: Option<At<String>>,
    /// Permission bits such as `"0755"`; default: `0755` for what is executable, else `0644`.
    pub(super) mode: Option<At<String>>,
    /// Numbers of user and group such as `"185:0"`; default: `0:0`.
    pub(super) owner: Option<At<String>>,
}

/// JARs by Maven coordinates, with everything that they need.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct JarsKeys {
    /// Where they come from, in this order; none is built in.
    #[serde(default)]
    pub(super) repositories: Vec<At<RepositoryKeys>>,
    /// `group:artifact[:extension[:classifier]]:version`, with placeholders.
    #[serde(default)]
    pub(super) packages: Vec<At<String>>,
    /// `group:artifact` that are left out wherever they are needed; `*` stands for any.
    #[serde(default)]
    pub(super) exclude: Vec<At<String>>,
    /// `group:artifact` that may be another version than the one in Spark; Spark's is kept.
    #[serde(default)]
    pub(super) keep_spark: Vec<At<String>>,
}

/// A Maven repository.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RepositoryKeys {
    /// `https://`, `http://` or `file:`.
    pub(super) url: At<String>,
    /// Asked when the one before cannot be reached.
    #[serde(default)]
    pub(super) mirrors: Vec<At<String>>,
    /// The environment variable with the user name.
    pub(super) username_env: Option<String>,
    /// The environment variable with the password.
    pub(super) password_env: Option<String>,
}

/// How Java starts.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct JvmKeys {
    /// Whether the build runs a short job with the image's own Java (17 or newer) and archives the classes that it loads,
    /// with which driver and executors start in less processor time; default: false.
    pub(super) class_data_sharing: Option<bool>,
}

/// Python packages: one lock, or requirements.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WheelsKeys {
    /// `uv.lock` or `pylock.toml`.
    pub(super) lock: Option<At<String>>,
    /// Extras of the lock's project that are installed, too.
    #[serde(default)]
    pub(super) extras: Vec<At<String>>,
    /// Dependency groups of the lock that are installed, too.
    #[serde(default)]
    pub(super) groups: Vec<At<String>>,
    /// A requirements file; without hashes it is locked with `uv`.
    pub(super) requirements: Option<At<String>>,
    /// Requirements such as `pandas==2.2.3`; locked with `uv`.
    #[serde(default)]
    pub(super) packages: Vec<At<String>>,
}
