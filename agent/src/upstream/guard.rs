//! Addresses to which the agent never connects, even if a registry, a redirect or a name server returns them:
//! link-local ones and the metadata services of clouds, which give credentials to every process on the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// Metadata services outside the link-local ranges.
const METADATA: [IpAddr; 6] = [
    // Azure: host agent, which gives certificates and settings of the machine.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Google Cloud over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // Amazon EKS Pod Identity over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    // Alibaba Cloud.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Oracle Cloud.
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // Amazon EC2 over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Whether the agent must not connect to an address.
pub(super) fn is_forbidden(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast(),
    };
    link_local || METADATA.contains(&address)
}

/// Whether a URL contains a forbidden address; host names are checked when they are resolved.
pub(super) fn names_forbidden(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host.parse().is_ok_and(is_forbidden)
}

/// The system's resolver without the forbidden addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuardedResolver;

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<_> =
                found.iter().copied().filter(|address| !is_forbidden(address.ip())).collect();
            if allowed.is_empty() && !found.is_empty() {
                let reason = format!(
                    "`{}` resolves to a link-local or metadata address, to which the agent does not connect",
                    name.as_str()
                );
                return Err(reason.into());
            }
            let addresses: Addrs = Box::new(allowed.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_and_metadata_addresses_are_forbidden() {
        for address in [
            "169.254.169.254",
            "169.254.1.1",
            "100.100.100.200",
            "192.0.0.192",
            "fe80::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "168.63.129.16",
            "::ffff:169.254.169.254",
            "0.0.0.0",
            "::",
        ] {
            assert!(is_forbidden(address.parse().unwrap()), "{address}");
        }
        for address in ["127.0.0.1", "10.0.0.1", "192.168.1.1", "8.8.8.8", "::1", "fd00::1", "2001:db8::1"] {
            assert!(!is_forbidden(address.parse().unwrap()), "{address}");
        }
        assert!(names_forbidden(&Url::parse("http://169.254.169.254/latest").unwrap()));
        assert!(names_forbidden(&Url::parse("http://[fe80::1]/").unwrap()));
        // The URL parser normalizes other spellings of an address.
        assert!(names_forbidden(&Url::parse("http://0xa9fea9fe/").unwrap()));
        assert!(!names_forbidden(&Url::parse("http://registry.test/").unwrap()));
    }
}
