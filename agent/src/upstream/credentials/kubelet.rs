//! The kubelet's credential-provider plugins (`credentialprovider.kubelet.k8s.io/v1`, Kubernetes documentation,
//! "Configure a kubelet image credential provider"): the same programs and the same configuration file as on the node.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use oci::Login;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{
    helper::RUN_LIMIT,
    runs::{Answer, Runs},
};
use crate::types::{RegistryHost, RegistryPattern, RepoName};

const API: &str = "credentialprovider.kubelet.k8s.io/v1";

/// Why the providers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Read(#[source] std::io::Error),
    /// The file is not a provider configuration.
    #[error("the file is not a CredentialProviderConfig")]
    Syntax(#[source] Box<serde_saphyr::Error>),
    /// A provider in the file is not usable.
    #[error("provider `{name}`: {problem}")]
    Provider {
        /// Name of the provider.
        name: String,
        /// The cause.
        problem: String,
    },
}

/// Other fields (token attributes) are for the kubelet only.
#[derive(Deserialize)]
struct RawConfig {
    providers: Vec<RawProvider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProvider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<RawVariable>>,
}

#[derive(Deserialize)]
struct RawVariable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'a str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<HashMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    username: String,
    password: String,
}

#[derive(Clone, Debug)]
struct Provider {
    name: String,
    program: PathBuf,
    matches: Vec<String>,
    keep: Duration,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// All configured plugins and their answers.
#[derive(Debug)]
pub struct KubeletProviders {
    providers: Vec<Arc<Provider>>,
    /// By provider and registry; within these by image, or `""` for the whole registry.
    runs: Runs<Logins>,
    /// Answers that apply to every image, by provider.
    global: Arc<Mutex<HashMap<String, (Instant, Logins)>>>,
}

/// Patterns and logins of one answer.
type Logins = Arc<Vec<(String, Login)>>;

impl KubeletProviders {
    /// Reads the kubelet's `--image-credential-provider-config` and checks for the programs in
    /// `--image-credential-provider-bin-dir`.
    pub fn read(config: &Path, programs: &Path) -> Result<Self, KubeletError> {
        let text = std::fs::read_to_string(config).map_err(KubeletError::Read)?;
        let raw: RawConfig =
            serde_saphyr::from_str(&text).map_err(|error| KubeletError::Syntax(Box::new(error)))?;
        let providers = raw
            .providers
            .into_iter()
            .map(|raw| provider(raw, programs).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(Self { providers, runs: Runs::default(), global: Arc::default() })
    }

    /// A provider that may have credentials for some registry of `pattern`.
    pub(super) fn provider_for(&self, pattern: &RegistryPattern) -> Option<&str> {
        let concerns = |provider: &&Arc<Provider>| match pattern {
            RegistryPattern::Exact(host) => {
                provider.matches.iter().any(|image| matches_host(image, host.as_str()))
            }
            RegistryPattern::Under(_) | RegistryPattern::Any => true,
        };
        self.providers.iter().find(concerns).map(|provider| provider.name.as_str())
    }

    /// The login from the first matching provider; without one, why a provider failed, if one did.
    pub(super) async fn login(
        &self,
        registry: &RegistryHost,
        name: &RepoName,
        fresh: bool,
    ) -> Result<Option<Login>, String> {
        let image = format!("{registry}/{name}");
        let mut failed = None;
        for provider in &self.providers {
            if !provider.matches.iter().any(|pattern| matches_image(pattern, &image)) {
                continue;
            }
            match self.ask(provider, registry, &image, fresh).await {
                Ok(logins) => {
                    if let Some(login) = pick(&logins, &image) {
                        return Ok(Some(login));
                    }
                }
                Err(reason) => failed = failed.or(Some(reason)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    async fn ask(
        &self,
        provider: &Arc<Provider>,
        registry: &RegistryHost,
        image: &str,
        fresh: bool,
    ) -> Result<Logins, String> {
        if !fresh {
            let global = self.global.lock();
            let kept = global.get(&provider.name).filter(|(until, _)| *until > Instant::now());
            if let Some((_, logins)) = kept {
                return Ok(logins.clone());
            }
        }
        let key = format!("{} {registry}", provider.name);
        let run = run(provider.clone(), image.to_owned(), self.global.clone());
        self.runs.get(&key, &[image, ""], fresh, run).await
    }
}

fn provider(raw: RawProvider, programs: &Path) -> Result<Provider, KubeletError> {
    let wrong = |problem: String| KubeletError::Provider { name: raw.name.clone(), problem };
    if raw.name.is_empty() || raw.name.contains('/') || matches!(raw.name.as_str(), "." | "..") {
        return Err(wrong(
            "the name is not a file name: it must be that of a program in the directory".into(),
        ));
    }
    if raw.api_version != API {
        return Err(wrong(format!("apiVersion `{}` is not supported: use `{API}`", raw.api_version)));
    }
    let keep = go_duration(&raw.default_cache_duration).ok_or_else(|| {
        wrong(format!(
            "defaultCacheDuration `{}` is not a duration such as `12h`",
            raw.default_cache_duration
        ))
    })?;
    let program = programs.join(&raw.name);
    if !program.is_file() {
        return Err(wrong(format!("there is no program `{}`", program.display())));
    }
    Ok(Provider {
        program,
        matches: raw.match_images,
        keep,
        arguments: raw.args.unwrap_or_default(),
        environment: raw
            .env
            .unwrap_or_default()
            .into_iter()
            .map(|variable| (variable.name, variable.value))
            .collect(),
        name: raw.name,
    })
}

/// Runs a plugin; an answer that applies to every image is also kept in `global`.
async fn run(
    provider: Arc<Provider>,
    image: String,
    global: Arc<Mutex<HashMap<String, (Instant, Logins)>>>,
) -> Result<Answer<Logins>, String> {
    let response = respond(&provider, &image).await.map_err(|reason| {
        tracing::warn!(provider = provider.name, image, reason, "credential provider failed");
        format!("credential provider `{}` {reason}", provider.name)
    })?;
    let (scope, keep, logins) = response;
    if scope == "Global" {
        let mut global = global.lock();
        global.insert(provider.name.clone(), (Instant::now() + keep, logins.clone()));
    }
    let scope = if scope == "Image" { image } else { String::new() };
    Ok(Answer { scope, keep, value: logins })
}

/// Scope, time and logins of a plugin's answer.
async fn respond(provider: &Provider, image: &str) -> Result<(String, Duration, Logins), String> {
    let request = Request { api_version: API, kind: "CredentialProviderRequest", image };
    let input = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
    let Provider { program, arguments, environment, .. } = provider;
    let ended = oci::helper::run(program, arguments, environment, &input, RUN_LIMIT).await;
    let ended = ended.map_err(|error| error.to_string())?;
    if !ended.status.success() {
        return Err(ended.failure());
    }
    // Not the error's text: it may contain the answer.
    let response: Response = serde_json::from_slice(&ended.output)
        .map_err(|_| "answered something that is not a CredentialProviderResponse")?;
    if !matches!(response.cache_key_type.as_str(), "Image" | "Registry" | "Global") {
        return Err("answered with an unknown cacheKeyType".into());
    }
    let keep = match &response.cache_duration {
        Some(text) => go_duration(text).ok_or("answered with an invalid cacheDuration")?,
        None => provider.keep,
    };
    let logins = response.auth.unwrap_or_default().into_iter();
    let logins = logins
        .map(|(pattern, auth)| (pattern, Login::Password { user: auth.username, secret: auth.password }))
        .collect();
    Ok((response.cache_key_type, keep, Arc::new(logins)))
}

/// Of the matching patterns, the last one in order, as in the kubelet: the longer path wins.
fn pick(logins: &[(String, Login)], image: &str) -> Option<Login> {
    let matching = logins.iter().filter(|(pattern, _)| matches_image(pattern, image));
    matching.max_by(|a, b| a.0.cmp(&b.0)).map(|(_, login)| login.clone())
}

/// Whether a pattern matches an image: the same number of host labels, each with any `*`; the same port; a path
/// that starts with that of the pattern.
fn matches_image(pattern: &str, image: &str) -> bool {
    let pattern = pattern.trim_start_matches("https://").trim_start_matches("http://");
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (host, path) = image.split_once('/').unwrap_or((image, ""));
    same_host(pattern_host, host) && path.starts_with(pattern_path)
}

fn matches_host(pattern: &str, host: &str) -> bool {
    let pattern = pattern.trim_start_matches("https://").trim_start_matches("http://");
    same_host(pattern.split('/').next().unwrap_or_default(), host)
}

fn same_host(pattern: &str, host: &str) -> bool {
    let (pattern, pattern_port) = pattern.split_once(':').unwrap_or((pattern, ""));
    let (host, port) = host.split_once(':').unwrap_or((host, ""));
    let (labels, wanted): (Vec<_>, Vec<_>) = (host.split('.').collect(), pattern.split('.').collect());
    pattern_port == port
        && labels.len() == wanted.len()
        && wanted.iter().zip(labels).all(|(pattern, label)| matches_label(pattern, label))
}

/// `*` stands for any characters within one label.
fn matches_label(pattern: &str, label: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == label };
    label.strip_prefix(before).is_some_and(|rest| {
        (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches_label(after, &rest[at..]))
    })
}

/// Longest time for which an answer is kept, also when it names a longer one: the sum with the time of now must not overflow.
const LONGEST: Duration = Duration::from_hours(24 * 30);

/// Durations as Kubernetes writes them: `12h`, `1h30m`, `0`, `1.5s`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3_600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?.map(|kept| kept.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_match_as_the_kubelet_matches_them() {
        for (pattern, image, expected) in [
            ("*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.eu-west-1.amazonaws.com/spark", true),
            ("*.dkr.ecr.*.amazonaws.com", "dkr.ecr.eu-west-1.amazonaws.com/spark", false),
            ("*.example.com", "a.b.example.com/x", false),
            ("r*y.example.com/team", "registry.example.com/team/app", true),
            ("registry.example.com/team", "registry.example.com/other", false),
            ("registry.example.com:8080", "registry.example.com:8080/x", true),
            ("registry.example.com:8080", "registry.example.com/x", false),
            ("https://registry.example.com", "registry.example.com/x", true),
        ] {
            assert_eq!(matches_image(pattern, image), expected, "{pattern} {image}");
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in
            [("12h", 43_200.0), ("1h30m", 5_400.0), ("0", 0.0), ("0s", 0.0), ("1.5s", 1.5), ("250ms", 0.25)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "h", "12", "1x", "-1s", "1h-2m"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    fn plugin(directory: &Path, script: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let program = directory.join("provider");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = directory.join("config.yaml");
        let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: provider\n  matchImages: [\"*.test\"]\n  defaultCacheDuration: 1h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [get]\n  env: [{name: WHO, value: me}]\n";
        std::fs::write(&config, text).unwrap();
        config
    }

    #[tokio::test]
    async fn a_plugin_runs_once_and_its_answer_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let count = directory.path().join("count");
        let script = format!(
            r#"echo x >> {}; grep -q '"image":"r.test/team/app"' || exit 3; printf '{{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry","auth":{{"*.test":{{"username":"%s-%s","password":"p"}}}}}}' "$WHO" "$1""#,
            count.display()
        );
        let config = plugin(directory.path(), &script);
        let providers = KubeletProviders::read(&config, directory.path()).unwrap();
        let expected = Ok(Some(Login::Password { user: "me-get".into(), secret: "p".into() }));
        let (registry, name) = ("r.test".parse().unwrap(), "team/app".parse().unwrap());
        assert_eq!(providers.login(&registry, &name, false).await, expected);
        assert_eq!(
            providers.login(&registry, &"other".parse().unwrap(), false).await,
            expected,
            "kept for the registry"
        );
        assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), 1);
        assert_eq!(
            providers.login(&registry, &name, true).await,
            expected,
            "rejected by the registry: the plugin runs again"
        );
        assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), 2);
        assert_eq!(providers.login(&"other.example".parse().unwrap(), &name, false).await, Ok(None));
        assert!(providers.provider_for(&"r.test".parse().unwrap()).is_some());
        assert!(providers.provider_for(&"r.example".parse().unwrap()).is_none());
    }

    #[tokio::test]
    async fn a_failed_plugin_is_a_failure_and_not_an_answer() {
        let directory = tempfile::tempdir().unwrap();
        let config = plugin(directory.path(), "echo rubbish");
        let providers = KubeletProviders::read(&config, directory.path()).unwrap();
        let (registry, name) = ("r.test".parse().unwrap(), "a".parse().unwrap());
        let failed = providers.login(&registry, &name, false).await.unwrap_err();
        assert!(failed.contains("`provider` answered something that is not a"), "{failed}");
        std::fs::remove_file(directory.path().join("provider")).unwrap();
        let error = KubeletProviders::read(&config, directory.path()).unwrap_err();
        assert!(error.to_string().contains("there is no program"), "{error}");
    }
}
