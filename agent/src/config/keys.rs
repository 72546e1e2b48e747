//! Every key of the configuration: the one list behind flags, environment variables, `config --explain` and the
//! table in `agent/README.md`.

use std::fmt::Write as _;

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its path in the file, dots between levels.
    pub path: &'static str,
    /// Its default, as one would write it; empty when there is none.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

/// All keys, in the order in which they are explained.
pub const KEYS: &[Key] = &[
    Key {
        path: "dataDir",
        default: "/var/lib/hearth",
        meaning: "directory of the store; one agent per directory",
    },
    Key {
        path: "store.limit",
        default: "50%",
        meaning: "maximum size of the store: a size (`200GiB`) or a share of its file system; above it images are \
                  evicted",
    },
    Key {
        path: "store.minFree",
        default: "20%",
        meaning: "space of the file system that is always left free: a size or a share; the kubelet begins to remove \
                  images when less than 15% is free",
    },
    Key {
        path: "store.highWatermark",
        default: "95%",
        meaning: "share of the maximum size above which the least recently used images are evicted",
    },
    Key { path: "store.lowWatermark", default: "85%", meaning: "share at which eviction ends" },
    Key {
        path: "store.lockWait",
        default: "60s",
        meaning: "how long a new agent waits for an old one to release `dataDir`, serving what is stored meanwhile; \
                  then it exits with status 2",
    },
    Key {
        path: "store.scrubRate",
        default: "8MiB",
        meaning: "bytes per second of stored blobs that are read and verified in the background, each blob once a \
                  week at most; `0`: none",
    },
    Key {
        path: "store.runtimeContent",
        default: "",
        meaning: "the container runtime's content directory, with `blobs/sha256/` in it (containerd: \
                  `/var/lib/containerd/io.containerd.content.v1.content`): its blobs are read and verified there \
                  instead of being downloaded",
    },
    Key {
        path: "store.runtimeLink",
        default: "false",
        meaning: "`true`: such a blob is hard-linked instead of copied where both directories lie on one file system, so \
                  that one copy serves both",
    },
    Key {
        path: "mirror.listen",
        default: "127.0.0.1:5050",
        meaning: "address for the container runtime of this node",
    },
    Key {
        path: "peer.listen",
        default: "0.0.0.0:5051",
        meaning: "address for other agents; without peers nothing listens there",
    },
    Key {
        path: "peer.name",
        default: "",
        meaning: "this node's name among the peers, stable over restarts; default: the host's name",
    },
    Key {
        path: "peer.zone",
        default: "",
        meaning: "this node's zone: each piece of a blob crosses from one zone into another once",
    },
    Key {
        path: "peer.members",
        default: "",
        meaning: "the list of peers, when it does not change: `name=address:port` or `name@zone=address:port`, \
                  separated by commas",
    },
    Key {
        path: "peer.dns",
        default: "",
        meaning: "`name:port` that resolves to the addresses of the peers, resolved every 10 seconds",
    },
    Key {
        path: "peer.service",
        default: "",
        meaning: "`namespace/name` of the headless Kubernetes service whose EndpointSlices list the peers. Without \
                  `members`, `dns` or `service` every agent reads from the registry",
    },
    Key {
        path: "peer.api",
        default: "",
        meaning: "URL of the API server that `peer.service` is read from; default: the cluster that the agent runs \
                  in, with the pod's own account",
    },
    Key {
        path: "peer.relay",
        default: "true",
        meaning: "whether this node fetches pieces for its peers that no client of the node has requested: a small \
                  share of each blob",
    },
    Key {
        path: "peer.uploads",
        default: "4",
        meaning: "pieces sent to peers at the same time; each arrives sooner when there are few",
    },
    Key {
        path: "peer.uploadRate",
        default: "unlimited",
        meaning: "maximum rate at which bytes are sent to peers, for example `500MiB` per second",
    },
    Key {
        path: "peer.wait",
        default: "3s",
        meaning: "how long a download waits while no piece arrives from peers before it reads from the registry",
    },
    Key {
        path: "peer.tagQuorum",
        default: "3",
        meaning: "how many peers, of three times as many that each node chooses in secret, must report the same digest for a \
                  tag before the node uses it while the registry is throttling or down; never fewer than 2",
    },
    Key {
        path: "peer.tls.signer",
        default: "",
        meaning: "`hearth.dev/peer`: this node's certificate for peers is requested from the cluster and renewed, and \
                  `hearth-agent controller` signs it; instead of the three files below",
    },
    Key {
        path: "peer.tls.certificate",
        default: "",
        meaning: "PEM file of this node's certificate for peers; with it peers use TLS 1.3 only, and each requires a \
                  certificate of the other; the three files are read again every 30 seconds",
    },
    Key { path: "peer.tls.key", default: "", meaning: "PEM file of its private key" },
    Key {
        path: "peer.tls.ca",
        default: "",
        meaning: "PEM file of the authorities that sign the peers' certificates",
    },
    Key {
        path: "peer.tls.name",
        default: "",
        meaning: "the DNS name that every peer's certificate is valid for; peers are connected to by address, which \
                  no certificate contains; `hearth-peers` with `peer.tls.signer`",
    },
    Key {
        path: "runtime.socket",
        default: "",
        meaning: "socket of the node's container runtime (containerd: `/run/containerd/containerd.sock`), for images \
                  that are also loaded into it, and for the proof that it pulls through this agent; a process that may \
                  use it is root on the node",
    },
    Key {
        path: "runtime.setupReport",
        default: "",
        meaning: "file in which `hearth-agent setup` reports what it found to the agent of the same pod, which shows it in its \
                  `NodeCache`; `setup` then exits with status 0 also when no container runtime uses the agent",
    },
    Key {
        path: "admin.listen",
        default: "0.0.0.0:5052",
        meaning: "address for probes, Prometheus and people: /livez /readyz /metrics, the status page at / and /api/v1/status, \
                  both without names",
    },
    Key {
        path: "admin.socket",
        default: "",
        meaning: "Unix socket for the commands of `hearth-agent` (`ls`, `pin`, `import`, ...), only for root and the \
                  agent's own user; default: `agent.sock` in `dataDir`",
    },
    Key {
        path: "admin.tokenFile",
        default: "",
        meaning: "file with a token of at least 16 characters; clients of `admin.listen` that show it (`Authorization: Bearer`, \
                  or `#token=` after the status page's address) see the names of images, registries and peers; without a file \
                  no client does",
    },
    Key {
        path: "registries",
        default: "",
        meaning: "registries that are served, and no others; a list of `host` (exact, `*.example.com` or `*`), `endpoints` \
                  (base URLs in order; default `https://<host>`) and `private` (`decline`: images that need credentials are \
                  left to the container runtime and the pod's own secret, the default; `agent`: what the agent's own credentials \
                  can read is served to every pod of the node; `challenge`: each pod gets what the registry lets its own pull \
                  secret read), `connections` (parallel downloads of blobs; default 24) and `tls` \
                  (`ca`: PEM file of certificate authorities beyond the system's; `certificate` and `key`: PEM files \
                  of the agent's own), `realms` (further hosts of token endpoints to which credentials may be sent; those of \
                  the registry's own domain need not be named), `redirects` (hosts in private networks to which a registry \
                  without TLS may redirect) and `verify` (`keys`: PEM files of public keys, ECDSA, Ed25519 or RSA; only \
                  images that one of them signed are served). `private: agent` and `private: challenge` together with peers \
                  need `peer.tls`; `challenge` needs a loopback address as `mirror.listen`",
    },
    Key {
        path: "defaultRegistry",
        default: "",
        meaning: "registry of requests that do not name one (Docker's `registry-mirrors`)",
    },
    Key {
        path: "credentials.dockerConfig",
        default: "",
        meaning: "Docker config.json whose `auths`, `credHelpers` and `credsStore` the agent uses, read again when \
                  it changes; each of these registries must set `private`",
    },
    Key {
        path: "credentials.kubeletConfig",
        default: "",
        meaning: "the kubelet's CredentialProviderConfig: its plugins give credentials for the images that they match",
    },
    Key { path: "credentials.kubeletBinDir", default: "", meaning: "directory of these plugins" },
    Key {
        path: "tags.freshness",
        default: "60s",
        meaning: "how long the digest that a tag resolved to is used without asking the registry again",
    },
    Key {
        path: "tags.maxStale",
        default: "forever",
        meaning: "how old the last known digest of a tag may be when the registry cannot answer",
    },
    Key {
        path: "tags.negative",
        default: "10s",
        meaning: "how long a registry's \"does not exist\" is cached: of tags, manifests and blobs",
    },
    Key {
        path: "fetch.blobConnections",
        default: "8",
        meaning: "maximum number of connections for one blob; more than one is used while that makes it faster",
    },
    Key {
        path: "fetch.parallelFrom",
        default: "512MiB",
        meaning: "size from which a blob may use several connections; a smaller one is one plain request, which \
                  costs the least of a registry's limit, and an image's layers are downloaded in parallel anyway",
    },
    Key {
        path: "fetch.wholeOnRange",
        default: "false",
        meaning: "`true`: a client's bounded range downloads the whole blob into the store; `false`: only the pieces \
                  that it touches",
    },
    Key {
        path: "limits.firstHeader",
        default: "5s",
        meaning: "longest wait for a response's header while no byte of the download arrives, then 503: for clients \
                  that then request the content from the registry (containerd, BuildKit, Docker), and for tags",
    },
    Key { path: "limits.connect", default: "2s", meaning: "longest wait for a connection to a registry" },
    Key {
        path: "limits.header",
        default: "10s",
        meaning: "longest wait for the header of a registry's response; then a second request goes to its next \
                  endpoint, if it has one, or to the same",
    },
    Key {
        path: "limits.blobHeader",
        default: "60s",
        meaning: "the same for blobs and for manifests by digest, and how long clients wait that would fail the pull \
                  at a 503 (podman, skopeo, buildah, CRI-O)",
    },
    Key { path: "limits.idle", default: "30s", meaning: "longest pause of a registry inside a body" },
    Key {
        path: "limits.clientWrite",
        default: "60s",
        meaning: "longest time in which a client reads no bytes; a slow client that reads some is not disconnected",
    },
    Key {
        path: "limits.connections",
        default: "4096",
        meaning: "maximum number of client connections on each listener, as far as the limit of open files allows; \
                  further clients are refused with 503. Clients from other machines may use three quarters of them, \
                  each address an eighth",
    },
    Key {
        path: "limits.shutdownGrace",
        default: "25s",
        meaning: "how long open requests may continue after SIGTERM",
    },
    Key {
        path: "prepull.sets",
        default: "",
        meaning: "images that are pulled to this node before a pod needs them: a list of `name`, `images` (by tag or \
                  digest), `platforms` (default: the node's own), `schedule` (cron, when tags are resolved again) \
                  with `timeZone`, `pullPolicy` (`IfChanged`, the default: a changed tag is pulled, and the old \
                  image becomes evictable when the new one is complete; `Once`: the first digest stays), `pin` \
                  (never evicted; default `true`), `bandwidth` (maximum bytes per second for one image) and \
                  `runtime` (`true`: also loaded into the container runtime of `runtime.socket`)",
    },
    Key { path: "prepull.parallel", default: "2", meaning: "images of sets pulled at the same time" },
    Key {
        path: "prepull.interval",
        default: "5m",
        meaning: "how often the tags of sets without a schedule are resolved again",
    },
    Key {
        path: "kubernetes.imageSets",
        default: "false",
        meaning: "whether the agent follows the `ImageSet`s of its cluster, writes its `NodeCache`, and removes its \
                  node's start-up taint",
    },
    Key {
        path: "kubernetes.api",
        default: "",
        meaning: "URL of the API server; default: the cluster that the agent runs in, with the pod's own account",
    },
    Key {
        path: "kubernetes.node",
        default: "",
        meaning: "this node's name in the cluster; default: `peer.name`",
    },
    Key {
        path: "kubernetes.namespace",
        default: "hearth",
        meaning: "namespace of the lease by which one process of the controller becomes the leader, and of the authorities \
                  that sign peers' certificates",
    },
    Key {
        path: "kubernetes.agentAccount",
        default: "hearth-agent",
        meaning: "service account of the agents in that namespace: the controller signs certificates for it",
    },
    Key {
        path: "kubernetes.taint",
        default: "hearth.dev/warming",
        meaning: "key of the start-up taint that the agent removes when all pinned images of its node are cached",
    },
    Key {
        path: "kubernetes.warmDeadline",
        default: "10m",
        meaning: "time after which the taint is removed even if images are missing",
    },
    Key {
        path: "kubernetes.statusInterval",
        default: "10s",
        meaning: "minimum time between two writes of one object's status",
    },
    Key {
        path: "kubernetes.heartbeat",
        default: "20s",
        meaning: "how often an agent renews its `NodeCache`; the controller counts a node as unknown when three renewals are missing",
    },
    Key {
        path: "kubernetes.warmLabels",
        default: "false",
        meaning: "whether the agent labels its node `hearth.dev/warm.<set>: \"true\"` while every image of an `ImageSet` is cached, so \
                  that pods can prefer such nodes; sets with `ttlSeconds` have no label",
    },
    Key {
        path: "kubernetes.podEvents",
        default: "false",
        meaning: "whether the agent writes Events on pods of its node that wait for an image, with its progress: at most one for a pod in \
                  15 s; needs the rights of the component `pod-events`",
    },
    Key {
        path: "kubernetes.agentNodes",
        default: "kubernetes.io/os=linux,type!=virtual-kubelet",
        meaning: "label selector of the nodes that have an agent, as for `kubectl get nodes -l`: the controller waits for these and no \
                  others",
    },
    Key {
        path: "kubernetes.spark",
        default: "true",
        meaning: "whether the controller pre-pulls the images of Spark applications: of the Spark operator, and of \
                  drivers that `spark-submit` started",
    },
    Key {
        path: "kubernetes.sparkLead",
        default: "10m",
        meaning: "how long before a scheduled application's next run its images are pulled",
    },
    Key {
        path: "kubernetes.sparkTtl",
        default: "1h",
        meaning: "how long images stay in their set after the last application that needed them",
    },
    Key {
        path: "kubernetes.sparkNamespaces",
        default: "labelled",
        meaning: "whose applications: `labelled` (namespaces with the label `hearth.dev/prepull: \"true\"`), `all`, or \
                  namespaces separated by commas",
    },
    Key {
        path: "kubernetes.sparkImages",
        default: "50",
        meaning: "maximum number of images that the applications of one namespace have pre-pulled",
    },
    Key {
        path: "kubernetes.sparkBytes",
        default: "100GiB",
        meaning: "maximum bytes of such images on one node, for each namespace",
    },
    Key {
        path: "traces.endpoint",
        default: "",
        meaning: "base URL of an OpenTelemetry collector that takes OTLP over HTTP (usually port 4318): spans of pulls go \
                  to `v1/traces` below it; without it there are no traces",
    },
    Key {
        path: "traces.ratio",
        default: "0.01",
        meaning: "share of requests that begin a trace, from 0 to 1; a request that continues one (`traceparent`) follows it",
    },
    Key { path: "log.format", default: "text", meaning: "`text` or `json`" },
    Key {
        path: "log.filter",
        default: "info",
        meaning: "`tracing` filter: a level, or a list such as `info,hearth_agent=debug`",
    },
];

impl Key {
    /// Its flag, without dashes: `mirror.listen` is `mirror-listen`.
    pub fn flag(&self) -> String {
        self.words('-')
    }

    /// Its environment variable: `mirror.listen` is `HEARTH_MIRROR_LISTEN`.
    pub fn variable(&self) -> String {
        format!("HEARTH_{}", self.words('_').to_ascii_uppercase())
    }

    fn words(&self, separator: char) -> String {
        let mut out = String::new();
        for c in self.path.chars() {
            match c {
                '.' => out.push(separator),
                c if c.is_ascii_uppercase() => {
                    out.push(separator);
                    out.push(c.to_ascii_lowercase());
                }
                c => out.push(c),
            }
        }
        out
    }

    /// A document that sets this key alone.
    pub(super) fn document(&self, value: &str) -> String {
        let mut out = String::new();
        for (depth, part) in self.path.split('.').enumerate() {
            if depth > 0 {
                out.push('\n');
            }
            let _ = write!(out, "{}{part}:", "  ".repeat(depth));
        }
        // Anything but a list is one line of text.
        let value = if matches!(self.path, "registries" | "prepull.sets") {
            value.trim().to_owned()
        } else {
            value.lines().collect::<Vec<_>>().join(" ")
        };
        let _ = write!(out, " {value}");
        out
    }
}
