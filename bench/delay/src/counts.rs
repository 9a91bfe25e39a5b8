//! How many requests of each kind there were, and how many bytes went each way.

use std::sync::atomic::{AtomicU64, Ordering};

const KINDS: [&str; 6] = ["GET", "PUT", "HEAD", "LIST", "DELETE", "other"];

/// Counters that all connections share.
#[derive(Default)]
pub struct Counts {
    requests: [AtomicU64; KINDS.len()],
    /// Bytes of bodies to the server.
    pub sent: AtomicU64,
    /// Bytes of bodies from the server.
    pub received: AtomicU64,
}

impl Counts {
    /// Counts a request by the first line of its head.
    pub fn count(&self, method: &str, target: &str) {
        let kind = kind(method, target);
        let at = KINDS.iter().position(|name| *name == kind).unwrap_or(KINDS.len() - 1);
        self.requests[at].fetch_add(1, Ordering::Relaxed);
    }

    /// Begins again at zero.
    pub fn reset(&self) {
        for counter in self.requests.iter().chain([&self.sent, &self.received]) {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// The counters as one JSON object.
    pub fn json(&self) -> String {
        let mut pairs: Vec<String> = KINDS
            .iter()
            .zip(&self.requests)
            .map(|(kind, count)| format!("\"{kind}\": {}", count.load(Ordering::Relaxed)))
            .collect();
        for (name, count) in [("sent_bytes", &self.sent), ("received_bytes", &self.received)] {
            pairs.push(format!("\"{name}\": {}", count.load(Ordering::Relaxed)));
        }
        format!("{{{}}}", pairs.join(", "))
    }
}

/// What the request costs by the price lists: listing is priced as PUT there, but told apart here.
fn kind(method: &str, target: &str) -> &'static str {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let in_bucket = path.trim_matches('/').contains('/');
    match method {
        "GET" if !in_bucket || query.contains("list-type=") => "LIST",
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "POST" if query.split('&').any(|part| part.starts_with("delete")) => "DELETE",
        "POST" => "PUT", // the beginning and the end of an upload in parts
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(kind("GET", "/bucket/a/b"), "GET");
        assert_eq!(kind("GET", "/bucket?list-type=2&prefix=a"), "LIST");
        assert_eq!(kind("GET", "/bucket/?prefix=a"), "LIST");
        assert_eq!(kind("POST", "/bucket?delete="), "DELETE");
        assert_eq!(kind("POST", "/bucket/a?uploads"), "PUT");
        assert_eq!(kind("HEAD", "/bucket/a"), "HEAD");
    }
}
