//! Attacks on a running agent, one file for each kind of attack. Each was demonstrated in a security review, succeeded
//! then, and has to fail. What is defended and what is not: `agent/SECURITY.md`.

mod applications;
mod certificates;
mod challenge;
mod floods;
mod local;
mod peer_requests;
mod ports;
mod private_peers;
mod realms;
mod revocation;
