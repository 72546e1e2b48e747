//! What a user has to show to a registry.

/// What the user has for a registry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// Nothing.
    None,
    /// User and password.
    Password(String, String),
    /// A refresh token.
    IdentityToken(String),
}
