//! Which hosts a registry may send the agent to: with credentials, and into networks that are nearer to the node than the
//! registry itself. Pure, but for [`reach_of`].

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

/// Whether credentials for a registry with these hosts may be sent to `host`: one of them, one of the same registrable
/// domain, or one that is configured.
pub(super) fn may_have_credentials(host: &str, own: &[&str], configured: &[String]) -> bool {
    let host = host.to_ascii_lowercase();
    let related = |own: &&str| {
        let own = own.to_ascii_lowercase();
        host == own || registrable(&host).is_some_and(|domain| Some(domain) == registrable(&own))
    };
    configured.contains(&host) || own.iter().any(related)
}

/// The part of a name that one owner registers: two labels, or three below a country's second level such as `co.uk`. The
/// public suffix list knows more; without it a name below a shared suffix counts as its owner's neighbour's, as far as
/// two labels go. `None` for addresses and names of one label.
fn registrable(host: &str) -> Option<&str> {
    if host.parse::<IpAddr>().is_ok() {
        return None;
    }
    let host = host.trim_end_matches('.');
    let labels: Vec<_> = host.rsplit('.').collect();
    let [top, second, ..] = labels[..] else { return None };
    let shared = top.len() == 2
        && (second.len() <= 2 || matches!(second, "com" | "net" | "org" | "gov" | "edu" | "gob"));
    let count = if shared { 3 } else { 2 };
    if labels.len() < count {
        return None;
    }
    let length = labels[..count].iter().map(|label| label.len()).sum::<usize>() + count - 1;
    Some(&host[host.len() - length..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_within_the_registrys_own_domain() {
        for (host, own, expected) in [
            ("registry.example.com", "registry.example.com", true),
            ("AUTH.example.com", "registry.example.com", true),
            ("example.com", "registry.example.com", true),
            ("registry.example.com.", "registry.example.com", true),
            ("evil.com", "registry.example.com", false),
            ("example.com.evil.net", "registry.example.com", false),
            ("notexample.com", "registry.example.com", false),
            ("auth.other.co.uk", "registry.example.co.uk", false),
            ("auth.example.co.uk", "registry.example.co.uk", true),
            ("auth.other.com.au", "registry.example.com.au", false),
            ("co.uk", "registry.example.co.uk", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.2", "127.0.0.1", false),
            ("10.0.0.1", "10.0.0.2", false),
            ("auth", "registry", false),
            ("auth.test", "registry.test", false),
        ] {
            assert_eq!(may_have_credentials(host, &[own], &[]), expected, "{host} of {own}");
        }
        let configured = ["login.example.net".to_owned()];
        assert!(may_have_credentials("Login.example.net", &["r.example.com"], &configured));
        assert!(!may_have_credentials("other.example.net", &["r.example.com"], &configured));
        assert!(may_have_credentials("a.example.org", &["r.example.com", "r.example.org"], &[]));
    }

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
