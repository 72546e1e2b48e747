//! The vectors were made with OpenSSL: `openssl genpkey`, `openssl pkey -pubout`, `openssl dgst -sign`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::*;

const MANIFEST: &str = r#"{"schemaVersion":2}"#;

/// One key of each kind, with its signatures of [`payload`], of [`envelope`] and of [`MANIFEST`].
#[derive(Deserialize)]
struct Vector {
    scheme: String,
    key: String,
    simple: String,
    envelope: String,
    message: String,
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

fn image() -> Digest {
    Digest::of(MANIFEST.as_bytes())
}

fn payload() -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"r.test/team/app"}},"image":{{"docker-manifest-digest":"{}"}},"type":"cosign container image signature"}},"optional":null}}"#,
        image()
    )
}

fn statement() -> String {
    format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{}"}}}}],"predicateType":"{SIGN_PREDICATE}","predicate":{{}}}}"#,
        image().hex()
    )
}

fn envelope(statement: &str, signature: &str) -> Vec<u8> {
    json!({
        "mediaType": BUNDLE, "verificationMaterial": { "publicKey": { "hint": "x" } },
        "dsseEnvelope": {
            "payload": STANDARD.encode(statement), "payloadType": "application/vnd.in-toto+json",
            "signatures": [{ "sig": signature }],
        },
    })
    .to_string()
    .into_bytes()
}

fn message(signature: &str) -> Vec<u8> {
    json!({
        "mediaType": BUNDLE,
        "messageSignature": { "messageDigest": { "algorithm": "SHA2_256", "digest": "" }, "signature": signature },
    })
    .to_string()
    .into_bytes()
}

fn key(vector: &Vector) -> PublicKey {
    PublicKey::read_pem(vector.key.as_bytes(), "cosign.pub").unwrap().remove(0)
}

#[test]
fn signatures_of_all_kinds_of_keys_and_formats_are_verified() {
    let vectors = vectors();
    let keys: Vec<_> = vectors.iter().map(key).collect();
    for (position, vector) in vectors.iter().enumerate() {
        let scheme = &vector.scheme;
        let simple = check_simple(payload().as_bytes(), &vector.simple, &image(), &keys);
        assert_eq!(simple, Ok(position), "{scheme}");
        let bundle =
            check_bundle(&envelope(&statement(), &vector.envelope), &image(), MANIFEST.as_bytes(), &keys);
        assert_eq!(bundle, Ok(position), "{scheme}");
        let signed = check_bundle(&message(&vector.message), &image(), MANIFEST.as_bytes(), &keys);
        assert_eq!(signed, Ok(position), "{scheme}");
    }
}

#[test]
fn other_keys_changed_bytes_and_other_images_are_refused() {
    let vectors = vectors();
    for (position, vector) in vectors.iter().enumerate() {
        let others = vectors.iter().enumerate().filter(|(at, _)| *at != position);
        let others: Vec<_> = others.map(|(_, other)| key(other)).collect();
        let keys = [key(vector)];
        let changed = payload().replace("team/app", "team/bad");
        let other = Digest::of(b"another image");
        for (payload, image, keys, expected) in [
            (payload(), image(), &others[..], Refused::Key),
            (changed, image(), &keys[..], Refused::Key),
            (payload(), other, &keys[..], Refused::Image(image().to_string())),
        ] {
            let checked = check_simple(payload.as_bytes(), &vector.simple, &image, keys);
            assert_eq!(checked, Err(expected), "{}", vector.scheme);
        }
        let changed = statement().replace(r#""predicate":{}"#, r#""predicate":{"a":1}"#);
        for (statement, image, keys, expected) in [
            (statement(), image(), &others[..], Refused::Key),
            (changed, image(), &keys[..], Refused::Key),
            (statement(), other, &keys[..], Refused::Image(image().to_string())),
        ] {
            let bundle = envelope(&statement, &vector.envelope);
            assert_eq!(check_bundle(&bundle, &image, MANIFEST.as_bytes(), keys), Err(expected));
        }
        let checked = check_bundle(&message(&vector.message), &other, b"another image", &keys);
        assert_eq!(checked, Err(Refused::Key));
    }
}

#[test]
fn a_signed_document_about_an_image_is_no_signature_of_it() {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let der = aws_lc_rs::encoding::AsDer::as_der(pair.public_key()).unwrap();
    let der: &[u8] = der.as_ref();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
    let keys = PublicKey::read_pem(pem.as_bytes(), "a").unwrap();
    assert_eq!(keys[0].id(), &Digest::of(der));
    let provenance = "https://slsa.dev/provenance/v1";
    let statement = statement().replace(SIGN_PREDICATE, provenance);
    let signed = bundle::encoded("application/vnd.in-toto+json", statement.as_bytes());
    let signature = pair.sign(&SystemRandom::new(), &signed).unwrap();
    let bundle = envelope(&statement, &STANDARD.encode(signature.as_ref()));
    let checked = check_bundle(&bundle, &image(), MANIFEST.as_bytes(), &keys);
    assert_eq!(checked, Err(Refused::Predicate(provenance.into())));
}

#[test]
fn junk_is_refused_with_a_reason() {
    let keys = [key(&vectors()[0])];
    for bundle in ["", "{}", "[]", r#"{"dsseEnvelope":{}}"#, r#"{"messageSignature":{"signature":"?"}}"#] {
        let checked = check_bundle(bundle.as_bytes(), &image(), b"", &keys);
        assert!(matches!(checked, Err(Refused::Format(_))), "{bundle}: {checked:?}");
    }
    assert!(matches!(check_simple(b"{}", "?", &image(), &keys), Err(Refused::Format(_))));
}

#[test]
fn files_without_a_public_key_are_errors_that_say_so() {
    let section = |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
    let two = format!("{}{}", vectors()[0].key, vectors()[1].key);
    assert_eq!(PublicKey::read_pem(two.as_bytes(), "a").unwrap().len(), 2);
    for (text, expected) in [
        (String::new(), "no `PUBLIC KEY` section in it"),
        (section("PRIVATE KEY", "AAAA"), "it contains a private key"),
        (section("ENCRYPTED SIGSTORE PRIVATE KEY", "AAAA"), "it contains a private key"),
        (section("CERTIFICATE", "AAAA"), "it contains a section that is not a `PUBLIC KEY`"),
        (section("PUBLIC KEY", "AAAA"), "unsupported key"),
    ] {
        let error = PublicKey::read_pem(text.as_bytes(), "a").unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn signatures_are_found_in_manifests_and_indexes() {
    let digest = |fill: &str| format!("sha256:{}", fill.repeat(64));
    let manifest = json!({ "layers": [
        { "mediaType": SIMPLE_SIGNING, "digest": digest("a"), "size": 9, "annotations": { SIGNATURE_ANNOTATION: "s" } },
        { "mediaType": SIMPLE_SIGNING, "digest": digest("b"), "size": 9 },
        { "mediaType": BUNDLE, "digest": digest("c"), "size": 7 },
        { "mediaType": "application/octet-stream", "digest": digest("d"), "size": 7 },
    ]});
    let found = signatures(manifest.to_string().as_bytes()).unwrap();
    let blobs: Vec<_> = found.iter().map(|signature| signature.blob().0.to_string()).collect();
    assert_eq!(blobs, [digest("a"), digest("c")]);
    let entry = |fill: &str, kind: Option<&str>, predicate: Option<&str>| {
        let mut entry = json!({ "digest": digest(fill), "size": 1 });
        if let Some(kind) = kind {
            entry["artifactType"] = kind.into();
        }
        if let Some(predicate) = predicate {
            entry["annotations"] = json!({ PREDICATE_ANNOTATION: predicate });
        }
        entry
    };
    let entries: Vec<Value> = vec![
        entry("a", None, None),
        entry("b", Some("application/spdx+json"), None),
        entry("c", Some(BUNDLE), Some("https://slsa.dev/provenance/v1")),
        entry("d", Some(BUNDLE), Some(SIGN_PREDICATE)),
        entry("e", Some(EMPTY), Some(SIGN_PREDICATE)),
        entry("f", Some(SIMPLE_ARTIFACT), None),
    ];
    let found = candidates(json!({ "manifests": entries }).to_string().as_bytes()).unwrap();
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["d", "f", "a", "e"].map(digest));
    assert_eq!(signature_tag(&image()).as_str(), format!("sha256-{}.sig", image().hex()));
    assert_eq!(referrers_tag(&image()).as_str(), format!("sha256-{}", image().hex()));
}
