//! Which hosts a registry may send the agent to: not into networks that are nearer to the node than the registry itself.
//! Pure, but for [`reach_of`].

use std::net::IpAddr;

use reqwest::Url;

/// How near to this node an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Anyone's.
    Public,
    /// Of a private network: other hosts of the cluster, for example.
    Private,
    /// This node's own.
    Loopback,
}

/// Of one address.
pub(super) fn reach(address: IpAddr) -> Reach {
    match address.to_canonical() {
        address if address.is_loopback() => Reach::Loopback,
        IpAddr::V4(v4) => {
            // RFC 6598, 7: shared address space, which clusters use as well.
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            if v4.is_private() || v4.is_link_local() || shared { Reach::Private } else { Reach::Public }
        }
        IpAddr::V6(v6) => {
            let private = v6.is_unique_local() || v6.is_unicast_link_local();
            if private { Reach::Private } else { Reach::Public }
        }
    }
}

/// The nearest of a URL's addresses; `None` when its name has none now.
pub(super) async fn reach_of(url: &Url) -> Option<Reach> {
    let host = bare_host(url);
    if let Ok(address) = host.parse() {
        return Some(reach(address));
    }
    let found = tokio::net::lookup_host((host, 0)).await.ok()?;
    found.map(|address| reach(address.ip())).max()
}

/// The host without the brackets of an IPv6 address.
pub(super) fn bare_host(url: &Url) -> &str {
    url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_public_private_or_the_nodes_own() {
        for (address, expected) in [
            ("8.8.8.8", Reach::Public),
            ("2001:db8::1", Reach::Public),
            ("10.0.0.1", Reach::Private),
            ("172.16.0.1", Reach::Private),
            ("192.168.0.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("fd00::1", Reach::Private),
            ("127.0.0.1", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("::ffff:10.0.0.1", Reach::Private),
        ] {
            assert_eq!(reach(address.parse().unwrap()), expected, "{address}");
        }
        assert!(Reach::Public < Reach::Private && Reach::Private < Reach::Loopback);
    }
}
