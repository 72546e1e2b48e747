//! HTTP: verbs, faults, and the log of requests.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch};

use super::{
    lists,
    objects::{Failure, Objects, Write},
    roles::Rule,
};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request.
#[derive(Clone, Debug)]
pub struct Record {
    /// `get`, `list`, `watch`, `create`, `update`, `patch` or `delete`.
    pub verb: &'static str,
    /// Who asked, for clients of `FakeApi::url_for`.
    pub client: String,
    /// Plural name of the kind.
    pub plural: String,
    /// Name of the object, if it was about one.
    pub name: String,
    /// `status`, or nothing.
    pub subresource: String,
    /// A further page of a list.
    pub continued: bool,
    /// HTTP status of the answer.
    pub status: u16,
    /// Bytes of the answer; of watches, see `FakeApi::watched_bytes`.
    pub bytes: u64,
    /// Since the server was made.
    pub at: Duration,
}

/// Requests that go wrong.
#[derive(Clone, Debug)]
pub struct ApiFault {
    /// Verbs that it hits; empty means all.
    pub verbs: &'static [&'static str],
    /// Plural name of a kind; empty means all.
    pub plural: &'static str,
    /// How often; `None` means until it is healed.
    pub times: Option<usize>,
    /// What is answered; 0 means that the request goes through, late.
    pub status: u16,
    /// How long it takes.
    pub delay: Duration,
}

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Shared {
    objects: Mutex<Objects>,
    roles: Mutex<HashMap<String, Vec<Rule>>>,
    /// User name and node by token.
    accounts: Mutex<HashMap<String, (String, String)>>,
    faults: Mutex<Vec<ApiFault>>,
    log: Mutex<Vec<Record>>,
    watched: Mutex<HashMap<String, u64>>,
    /// The version, and when watches are to end.
    pub(super) news: watch::Sender<(u64, u64)>,
    since: std::time::Instant,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            objects: Mutex::default(),
            roles: Mutex::default(),
            accounts: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            watched: Mutex::default(),
            news: watch::Sender::default(),
            since: std::time::Instant::now(),
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn objects(&self) -> MutexGuard<'_, Objects> {
        guard(&self.objects)
    }

    pub(super) fn roles(&self) -> MutexGuard<'_, HashMap<String, Vec<Rule>>> {
        guard(&self.roles)
    }

    pub(super) fn accounts(&self) -> MutexGuard<'_, HashMap<String, (String, String)>> {
        guard(&self.accounts)
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Vec<ApiFault>> {
        guard(&self.faults)
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Vec<Record>> {
        guard(&self.log)
    }

    pub(super) fn watched(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        guard(&self.watched)
    }

    /// Changes objects and tells those who watch.
    pub(super) fn change<T>(&self, act: impl FnOnce(&mut Objects) -> T) -> T {
        let mut objects = self.objects();
        let before = objects.version();
        let outcome = act(&mut objects);
        let version = objects.version();
        drop(objects);
        if version != before {
            self.news.send_modify(|news| news.0 = version);
        }
        outcome
    }

    fn fault_for(&self, verb: &str, plural: &str) -> Option<ApiFault> {
        let mut faults = self.faults();
        let hit = faults.iter_mut().find(|fault| {
            (fault.verbs.is_empty() || fault.verbs.contains(&verb))
                && (fault.plural.is_empty() || fault.plural == plural)
                && fault.times != Some(0)
        })?;
        if let Some(times) = &mut hit.times {
            *times -= 1;
        }
        Some(hit.clone())
    }
}

pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(&shared, request).await) }
            });
            // A client that goes away is no concern of the server.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// A request's target, taken apart.
#[derive(Debug)]
pub(super) struct Target {
    /// Who asks, where the path says so instead of a token.
    client: String,
    group: String,
    version: String,
    pub(super) namespace: Option<String>,
    plural: String,
    name: String,
    subresource: String,
    pub(super) query: HashMap<String, String>,
}

fn parse(request: &Request<Incoming>) -> Option<Target> {
    let mut parts: Vec<_> = request.uri().path().split('/').filter(|part| !part.is_empty()).collect();
    let mut client = String::new();
    if let ["as", name, ..] = parts.as_slice() {
        (*name).clone_into(&mut client);
        parts.drain(..2);
    }
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
        _ => (None, rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (plural, "", ""),
        [plural, name] => (plural, *name, ""),
        [plural, name, subresource] => (plural, *name, *subresource),
        _ => return None,
    };
    let query = request.uri().query().unwrap_or_default();
    let url = reqwest::Url::parse(&format!("http://x/?{query}")).ok()?;
    Some(Target {
        client,
        group: group.to_owned(),
        version: version.to_owned(),
        namespace,
        plural: (*plural).to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
        query: url.query_pairs().into_owned().collect(),
    })
}

fn verb(method: &Method, target: &Target) -> &'static str {
    let watch = target.query.get("watch").is_some_and(|value| value == "true" || value == "1");
    match (method.as_str(), target.name.is_empty()) {
        ("GET", _) if watch => "watch",
        ("GET", true) => "list",
        ("GET", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        _ => "delete",
    }
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let Some(target) = parse(&request) else {
        return failed(&Failure::new(404, "NotFound", "the server could not find the requested resource"));
    };
    let verb = verb(request.method(), &target);
    let fault = shared.fault_for(verb, &target.plural);
    if let Some(fault) = &fault {
        tokio::time::sleep(fault.delay).await;
    }
    let outcome = match fault {
        Some(fault) if fault.status != 0 => {
            Err(Failure::new(fault.status, "Fault", "made to fail by the test"))
        }
        _ => act(shared, verb, &target, request).await,
    };
    let (response, bytes) = match outcome {
        Ok(Outcome::Document(status, value)) => {
            let text = value.to_string();
            let bytes = text.len() as u64;
            (document(status, text), bytes)
        }
        Ok(Outcome::Watch(response)) => (response, 0),
        Err(failure) => (failed(&failure), 0),
    };
    shared.log().push(Record {
        verb,
        client: target.client,
        plural: target.plural,
        name: target.name,
        subresource: target.subresource,
        continued: target.query.get("continue").is_some_and(|token| !token.is_empty()),
        status: response.status().as_u16(),
        bytes,
        at: shared.since.elapsed(),
    });
    response
}

pub(super) enum Outcome {
    Document(StatusCode, Value),
    Watch(Response<Body>),
}

fn document(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn failed(failure: &Failure) -> Response<Body> {
    let status = StatusCode::from_u16(failure.code).expect("faults have a status");
    let mut response = document(status, failure.body().to_string());
    if failure.code == 429 {
        response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
    }
    response
}

async fn act(
    shared: &Arc<Shared>,
    verb: &'static str,
    target: &Target,
    request: Request<Incoming>,
) -> Result<Outcome, Failure> {
    if verb == "create" && target.plural == "selfsubjectaccessreviews" {
        return review(shared, target, request).await;
    }
    admit(shared, verb, target, request.headers())?;
    let kind = shared.objects().kind_at(&target.group, &target.version, &target.plural);
    let kind = kind
        .ok_or_else(|| Failure::new(404, "NotFound", "the server could not find the requested resource"))?;
    let approval = target.subresource == "approval" && kind.kind == "CertificateSigningRequest";
    if !target.subresource.is_empty() && !approval && (target.subresource != "status" || !kind.status) {
        return Err(Failure::new(404, "NotFound", "the server could not find the requested resource"));
    }
    match verb {
        "watch" => return lists::watch(shared, kind, target),
        "list" => return lists::list(shared, &kind, target),
        _ => {}
    }
    if kind.kind == "CertificateSigningRequest" && !target.subresource.is_empty() {
        admit_signer(shared, target, request.headers())?;
    }
    let client = token_of(request.headers(), target);
    let content_type = header_text(request.headers(), header::CONTENT_TYPE.as_str());
    let agent = header_text(request.headers(), header::USER_AGENT.as_str());
    let body = request
        .into_body()
        .collect()
        .await
        .map_err(|error| Failure::new(400, "BadRequest", error.to_string()))?;
    let body = body.to_bytes();
    let value = || {
        serde_json::from_slice::<Value>(&body)
            .map_err(|error| Failure::new(400, "BadRequest", error.to_string()))
    };
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let name = target.name.as_str();
    let manager = target.query.get("fieldManager").cloned().unwrap_or(agent);
    let status = !target.subresource.is_empty();
    let outcome = match verb {
        "get" => (StatusCode::OK, shared.objects().read(&kind, namespace, name)?),
        "create" => {
            let mut object = value()?;
            if kind.kind == "CertificateSigningRequest" {
                sender(shared, &client, &mut object);
            }
            (
                StatusCode::CREATED,
                shared.change(|objects| objects.create(&kind, namespace, object, &manager))?,
            )
        }
        "update" => {
            let object = value()?;
            let write = Write::Put(&object);
            let written =
                shared.change(|objects| objects.write(&kind, (namespace, name), status, &write, &manager));
            (StatusCode::OK, written?)
        }
        "patch" => {
            let patch = value()?;
            let write = match content_type.split(';').next().unwrap_or_default() {
                "application/json-patch+json" => Write::Json(&patch),
                "application/merge-patch+json" => Write::Merge(&patch),
                "application/strategic-merge-patch+json" if kind.schema.is_none() => Write::Strategic(&patch),
                "application/apply-patch+yaml" => Write::Apply {
                    patch: &patch,
                    force: target.query.get("force").is_some_and(|force| force == "true"),
                },
                other => {
                    return Err(Failure::new(
                        415,
                        "UnsupportedMediaType",
                        format!("`{other}` is not supported"),
                    ));
                }
            };
            let written =
                shared.change(|objects| objects.write(&kind, (namespace, name), status, &write, &manager));
            (StatusCode::OK, written?)
        }
        _ => (StatusCode::OK, shared.change(|objects| objects.delete(&kind, namespace, name))?),
    };
    Ok(Outcome::Document(outcome.0, outcome.1))
}

/// Writes into a request for a certificate who sends it, not who it says it is.
fn sender(shared: &Shared, client: &str, object: &mut Value) {
    let known = shared.accounts().get(client).cloned();
    let (user, node) = known.unwrap_or_else(|| ("system:anonymous".to_owned(), String::new()));
    object["spec"]["username"] = user.into();
    object["spec"]["extra"] = serde_json::json!({});
    if !node.is_empty() {
        object["spec"]["extra"]["authentication.kubernetes.io/node-name"] = serde_json::json!([node]);
    }
}

/// To approve or sign needs a right to the signer, beside the one to the object.
fn admit_signer(shared: &Shared, target: &Target, headers: &HeaderMap) -> Result<(), Failure> {
    let verb = if target.subresource == "approval" { "approve" } else { "sign" };
    let request = shared.objects().find("CertificateSigningRequest", "", &target.name);
    let signer = request.map(|one| one["spec"]["signerName"].as_str().unwrap_or_default().to_owned());
    let signer = signer.unwrap_or_default();
    let roles = shared.roles();
    let Some(rules) = roles.get(&token_of(headers, target)) else { return Ok(()) };
    if rules.iter().any(|rule| rule.allows(verb, "certificates.k8s.io", "signers", &signer)) {
        return Ok(());
    }
    Err(Failure::new(
        403,
        "Forbidden",
        format!("user not permitted to {verb} requests with signerName \"{signer}\""),
    ))
}

fn token_of(headers: &HeaderMap, target: &Target) -> String {
    let token = header_text(headers, header::AUTHORIZATION.as_str());
    token.strip_prefix("Bearer ").unwrap_or(&target.client).to_owned()
}

fn header_text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// What the client may do: every account may ask.
async fn review(shared: &Shared, target: &Target, request: Request<Incoming>) -> Result<Outcome, Failure> {
    let bad = |error: &dyn std::fmt::Display| Failure::new(400, "BadRequest", error.to_string());
    let token = token_of(request.headers(), target);
    let body = request.into_body().collect().await.map_err(|error| bad(&error))?;
    let mut review: Value = serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(&error))?;
    let asked = &review["spec"]["resourceAttributes"];
    let text = |key: &str| asked[key].as_str().unwrap_or_default();
    let resource = match text("subresource") {
        "" => text("resource").to_owned(),
        subresource => format!("{}/{subresource}", text("resource")),
    };
    let roles = shared.roles();
    let allowed = roles.get(&token).is_none_or(|rules| {
        rules.iter().any(|rule| rule.allows(text("verb"), text("group"), &resource, text("name")))
    });
    review["status"] = serde_json::json!({ "allowed": allowed });
    Ok(Outcome::Document(StatusCode::CREATED, review))
}

/// With a token that was given no role everything may be done; no token at all is one too, the empty one.
fn admit(shared: &Shared, verb: &str, target: &Target, headers: &HeaderMap) -> Result<(), Failure> {
    let roles = shared.roles();
    let Some(rules) = roles.get(&token_of(headers, target)) else { return Ok(()) };
    let resource = match target.subresource.as_str() {
        "" => target.plural.clone(),
        subresource => format!("{}/{subresource}", target.plural),
    };
    if rules.iter().any(|rule| rule.allows(verb, &target.group, &resource, &target.name)) {
        return Ok(());
    }
    let message = format!(
        "{resource}.{} is forbidden: User \"test\" cannot {verb} resource \"{resource}\"",
        target.group
    );
    Err(Failure::new(403, "Forbidden", message))
}
