//! A small network of its own: one namespace per node, each with one link to a bridge in a namespace between them, and a
//! token bucket at both ends of every link. Everything goes away with the value.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Bytes that may leave at once: more than the largest segment that the kernel hands over in one.
const BURST: &str = "256kb";
/// Longest stay in a bucket's queue.
const LATENCY: &str = "50ms";

/// The network.
#[derive(Debug)]
pub struct Net {
    prefix: String,
    nodes: u8,
}

impl Net {
    /// `links` are the rates of the nodes' links in the words of `tc`, `200mbit` for example. Needs root.
    pub fn new(links: &[String]) -> Result<Self> {
        let nodes = u8::try_from(links.len()).ok().filter(|nodes| *nodes < 250);
        let net = Self {
            prefix: format!("hearth{}", std::process::id()),
            nodes: nodes.context("fewer than 250 nodes")?,
        };
        let switch = net.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for (node, rate) in (0..net.nodes).zip(links) {
            net.attach(node, rate).with_context(|| format!("cannot attach node {node}"))?;
        }
        Ok(net)
    }

    fn attach(&self, node: u8, rate: &str) -> Result<()> {
        let (space, switch, port) = (self.space(node), self.switch(), port(node));
        ip(&["netns", "add", &space])?;
        ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &space, "link", "set", "lo", "up"])?;
        ip(&["-n", &space, "addr", "add", &format!("{}/24", Self::address(node)), "dev", "eth0"])?;
        ip(&["-n", &space, "link", "set", "eth0", "up"])?;
        self.set_rate(node, rate)
    }

    /// Gives a node's link another rate, both ways.
    pub fn set_rate(&self, node: u8, rate: &str) -> Result<()> {
        for (space, device) in [(self.space(node), "eth0"), (self.switch(), port(node).as_str())] {
            let bucket = ["-n", &space, "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate];
            run("tc", &[&bucket[..], &["burst", BURST, "latency", LATENCY]].concat())?;
        }
        Ok(())
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.prefix)
    }

    fn space(&self, node: u8) -> String {
        format!("{}-{node}", self.prefix)
    }

    /// A node's address.
    pub fn address(node: u8) -> IpAddr {
        Ipv4Addr::new(10, 77, 0, node + 1).into()
    }

    /// A command that runs on a node. Only its network is the node's: `ip netns exec` mounts another `/sys` as well, without the
    /// control groups that containers need.
    pub fn on(&self, node: u8, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.space(node))).arg(program);
        command
    }

    /// Bytes that every node has sent so far, headers and all.
    pub fn sent(&self) -> Result<Vec<u64>> {
        let printed = run("ip", &["-n", &self.switch(), "-s", "-j", "link", "show", "type", "veth"])?;
        let links: Vec<Value> = serde_json::from_str(&printed).context("`ip` prints another form")?;
        let of = |node: u8| {
            let link = links.iter().find(|link| link["ifname"] == port(node));
            link.and_then(|link| link["stats64"]["rx"]["bytes"].as_u64()).context("a link is gone")
        };
        (0..self.nodes).map(of).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let spaces = (0..self.nodes).map(|node| self.space(node)).chain([self.switch()]);
        for space in spaces {
            // Made or not: the last chance to take it back.
            ip(&["netns", "del", &space]).ok();
        }
    }
}

/// The bridge's end of a node's link.
fn port(node: u8) -> String {
    format!("p{node}")
}

fn ip(arguments: &[&str]) -> Result<String> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run `{program}`; is iproute2 installed"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}` failed: {}", arguments.join(" "), errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
