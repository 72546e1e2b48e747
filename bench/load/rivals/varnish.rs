//! Varnish as a streaming cache in memory: the honest anchor for one node. It checks nothing.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Result;
use kit::runtime::Daemon;

use super::{Contestant, accepting, free_port};

/// A cache in front of `upstream`, with room for `bytes` of content.
pub(crate) async fn start(upstream: SocketAddr, work: &Path, bytes: u64) -> Result<Contestant> {
    let dir = work.join("varnish");
    fs::create_dir_all(&dir)?;
    let (ip, port) = (upstream.ip(), upstream.port());
    let config = format!(
        "vcl 4.1;
backend default {{ .host = \"{ip}\"; .port = \"{port}\"; .first_byte_timeout = 60s; .between_bytes_timeout = 60s; }}
sub vcl_recv {{ return (hash); }}
sub vcl_backend_response {{ set beresp.do_stream = true; set beresp.ttl = 1h; set beresp.grace = 0s; return (deliver); }}
"
    );
    let path = dir.join("default.vcl");
    fs::write(&path, config)?;
    let address = free_port()?;
    let mut command = Command::new("varnishd");
    command.args(["-F", "-j", "none", "-a", &address.to_string(), "-s", &format!("malloc,{}M", bytes >> 20)]);
    command.arg("-f").arg(&path).arg("-n").arg(dir.join("state"));
    let mut daemon = Daemon::start(&mut command, &dir.join("log"))?;
    accepting(&mut daemon, address).await?;
    Ok(Contestant::rival("Varnish", address, daemon))
}
