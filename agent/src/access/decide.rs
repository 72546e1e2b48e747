//! What has to hold before content is given out. Pure.
//!
//! | the agent shows the registry | content that is not anyone's is given to |
//! | --- | --- |
//! | nothing (`decline`) | anyone, once the registry gives it to anyone |
//! | its own credentials (`agent`) | anyone, through a repository that has it |
//! | those of clients (`challenge`) | clients that may read a manifest of the repository that is, or names, the content |

use super::Content;
use crate::{
    store::{GivenTo, Origins},
    types::RegistryHost,
    upstream::Shows,
};

/// What is known of a content on this node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    /// Which registries gave it to whom; `None` without a record.
    pub(super) origins: Option<&'a Origins>,
    /// It is stored.
    pub(super) stored: bool,
}

impl Known<'_> {
    /// Whether anyone may have the content: a registry gave it without credentials.
    pub(super) fn is_anyones(&self, registry: &RegistryHost, shows: Shows) -> bool {
        match self.origins {
            Some(origins) => origins.has(registry, GivenTo::Anyone),
            None => self.stored || shows == Shows::Nothing,
        }
    }

    fn was_given_to(&self, registry: &RegistryHost, to: GivenTo) -> bool {
        self.origins.is_some_and(|origins| origins.has(registry, to))
    }
}

/// What is done about content that is not anyone's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is recorded as the agent's, then fetched and given out.
    Record,
    /// The registry may have withdrawn the repository from the agent.
    Recheck,
    /// The registry has to give the agent this content from this repository.
    Ask,
    /// The registry has to let the client read the repository.
    Judge,
    /// The same, and this content there: no manifest on this node says that the repository has it.
    JudgeContent,
    /// It is not given out: no manifest of the repository names it.
    Unnamed,
}

/// `named`: a manifest of the repository on this node is the content, or names it.
pub(super) fn step(
    known: &Known<'_>,
    registry: &RegistryHost,
    shows: Shows,
    content: Content,
    named: bool,
    login: bool,
) -> Step {
    match (shows, content) {
        (Shows::Agents, _) if named && known.origins.is_none() => Step::Record,
        (Shows::Agents, _) if named && known.was_given_to(registry, GivenTo::Agent) => Step::Recheck,
        // Also what another policy opened: a client's credentials, or the agent's before `decline`.
        (Shows::Nothing | Shows::Agents, _) => Step::Ask,
        (Shows::Clients, _) if named => Step::Judge,
        (Shows::Clients, Content::Blob) if login => Step::Unnamed,
        (Shows::Clients, _) => Step::JudgeContent,
    }
}

/// Whether peers may have a content. Their own nodes look after the repositories and clients there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// They may.
    Yes,
    /// They might, but it is not here, and nothing lets this node fetch it.
    NotHere,
    /// They may not.
    No,
}

/// `may_fetch`: this node may read from the repository now.
pub(super) fn share(known: &Known<'_>, registry: &RegistryHost, shows: Shows, may_fetch: bool) -> Sharing {
    if known.is_anyones(registry, shows) {
        return Sharing::Yes;
    }
    match (shows, known.origins) {
        (Shows::Nothing, _) => Sharing::No,
        (_, None) if may_fetch => Sharing::Yes,
        (_, None) => Sharing::NotHere,
        (_, Some(origins)) => {
            let private = [GivenTo::Agent, GivenTo::Client];
            if private.iter().any(|to| origins.has(registry, *to)) { Sharing::Yes } else { Sharing::No }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(text: &str) -> Origins {
        serde_json::from_str(&format!(r#"{{"registries":[{text}]}}"#)).unwrap()
    }

    const AGENT: &str = r#"{"registry":"r.test","credentials":true}"#;
    const CLIENT: &str = r#"{"registry":"r.test","credentials":true,"client":true}"#;
    const ANYONE: &str = r#"{"registry":"r.test","credentials":false}"#;
    const OTHER: &str = r#"{"registry":"s.test","credentials":false}"#;

    fn all(parts: &[&str]) -> Origins {
        origins(&parts.join(","))
    }

    #[test]
    fn content_is_anyones_when_a_registry_gave_it_without_credentials() {
        let registry: RegistryHost = "r.test".parse().unwrap();
        for (origins, stored, shows, expected) in [
            (None, true, Shows::Nothing, true),
            (None, false, Shows::Nothing, true),
            (None, true, Shows::Agents, true),
            (None, false, Shows::Agents, false),
            (None, true, Shows::Clients, true),
            (None, false, Shows::Clients, false),
            (Some(all(&[AGENT])), true, Shows::Nothing, false),
            (Some(all(&[CLIENT])), true, Shows::Nothing, false),
            (Some(all(&[AGENT])), true, Shows::Agents, false),
            (Some(all(&[AGENT, OTHER])), true, Shows::Nothing, false),
            (Some(all(&[AGENT, ANYONE])), true, Shows::Nothing, true),
            (Some(all(&[CLIENT, ANYONE])), true, Shows::Clients, true),
        ] {
            let known = Known { origins: origins.as_ref(), stored };
            assert_eq!(known.is_anyones(&registry, shows), expected, "{origins:?} {stored} {shows:?}");
        }
    }

    #[test]
    fn private_content_is_given_under_the_policy_in_force_through_repositories_that_have_it() {
        use Content::{Blob, Manifest};
        let registry: RegistryHost = "r.test".parse().unwrap();
        for (origins, shows, content, named, login, expected) in [
            (Some(all(&[AGENT])), Shows::Nothing, Blob, true, false, Step::Ask),
            (Some(all(&[CLIENT])), Shows::Nothing, Manifest, true, true, Step::Ask),
            (None, Shows::Agents, Blob, true, false, Step::Record),
            (None, Shows::Agents, Blob, false, false, Step::Ask),
            (None, Shows::Agents, Manifest, false, false, Step::Ask),
            (Some(all(&[AGENT])), Shows::Agents, Blob, true, false, Step::Recheck),
            (Some(all(&[AGENT])), Shows::Agents, Blob, false, false, Step::Ask),
            (Some(all(&[CLIENT])), Shows::Agents, Blob, true, true, Step::Ask),
            (Some(all(&[OTHER])), Shows::Agents, Manifest, true, false, Step::Ask),
            (None, Shows::Clients, Manifest, true, true, Step::Judge),
            (None, Shows::Clients, Manifest, false, true, Step::JudgeContent),
            (Some(all(&[AGENT])), Shows::Clients, Blob, true, true, Step::Judge),
            (Some(all(&[CLIENT])), Shows::Clients, Blob, true, true, Step::Judge),
            (Some(all(&[CLIENT])), Shows::Clients, Blob, true, false, Step::Judge),
            (None, Shows::Clients, Blob, false, true, Step::Unnamed),
            (Some(all(&[CLIENT])), Shows::Clients, Blob, false, true, Step::Unnamed),
            (None, Shows::Clients, Blob, false, false, Step::JudgeContent),
            (Some(all(&[CLIENT])), Shows::Clients, Manifest, false, true, Step::JudgeContent),
        ] {
            let known = Known { origins: origins.as_ref(), stored: origins.is_some() };
            let decided = step(&known, &registry, shows, content, named, login);
            assert_eq!(decided, expected, "{origins:?} {shows:?} {content:?} {named} {login}");
        }
    }

    #[test]
    fn peers_have_private_content_of_registries_that_show_it_to_someone() {
        let registry: RegistryHost = "r.test".parse().unwrap();
        for (origins, stored, shows, may_fetch, expected) in [
            (None, false, Shows::Nothing, true, Sharing::Yes),
            (None, false, Shows::Agents, true, Sharing::Yes),
            (None, false, Shows::Clients, true, Sharing::Yes),
            (None, false, Shows::Clients, false, Sharing::NotHere),
            (None, true, Shows::Clients, false, Sharing::Yes),
            (Some(all(&[CLIENT])), true, Shows::Clients, false, Sharing::Yes),
            (Some(all(&[CLIENT])), true, Shows::Nothing, true, Sharing::No),
            (Some(all(&[AGENT])), true, Shows::Agents, true, Sharing::Yes),
            (Some(all(&[OTHER])), true, Shows::Clients, true, Sharing::No),
        ] {
            let known = Known { origins: origins.as_ref(), stored };
            let shared = share(&known, &registry, shows, may_fetch);
            assert_eq!(shared, expected, "{origins:?} {stored} {shows:?} {may_fetch}");
        }
    }
}
