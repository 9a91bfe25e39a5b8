//! Requests to S3 that the client library has no words for. It signs them, and its wire carries them.

use super::fault;
use super::wire::text_of;
use crate::error::Action;
use crate::{ObjectName, StorageError};
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpError, HttpRequest, HttpRequestBody};
use object_store::{HeaderMap, HeaderValue, PutPayload};
use std::fmt::Write as _;

/// What is needed to ask a bucket of S3 by oneself.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    pub http: HttpClient,
    pub credentials: AwsCredentialProvider,
    pub region: String,
    /// The bucket's address, without a slash at its end.
    pub bucket: String,
}

/// One request.
pub(super) struct Ask<'a> {
    pub method: &'static str,
    /// The object's whole key, or nothing for the bucket.
    pub key: &'a str,
    /// With its question mark.
    pub query: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub parts: &'a [Bytes],
}

/// What came back, which is a success and has the shape that the request calls for.
pub(super) struct Told {
    pub headers: HeaderMap,
    pub text: String,
}

impl Told {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Signed {
    /// Sends the request; `name` is the object that it is about. What is sent has a SHA-256 with it, which S3 demands where a
    /// lock is set and which is signed with the rest.
    pub async fn send(
        &self,
        ask: Ask<'_>,
        action: Action,
        name: Option<&ObjectName>,
    ) -> Result<Told, StorageError> {
        let failed = |error| fault::meaning(error, action.clone(), name);
        let credential = self.credentials.get_credential().await.map_err(failed)?;
        let hash = sha256(ask.parts);
        let mut request = self
            .request(&ask, &hash)
            .map_err(|source| StorageError::Other { action: action.clone(), source: source.into() })?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, Some(hash.as_ref()))
            .map_err(failed)?;
        let response = self.http.execute(request).await.map_err(|error| failed(wrapped(error)))?;
        let headers = response.headers().clone();
        let text = text_of(response.into_body()).await.map_err(|error| failed(wrapped(error)))?;
        Ok(Told { headers, text })
    }

    fn request(&self, ask: &Ask<'_>, hash: &digest::Digest) -> Result<HttpRequest, String> {
        let body: PutPayload = ask.parts.iter().cloned().collect();
        let length = body.content_length();
        let body = if ask.parts.is_empty() { HttpRequestBody::empty() } else { HttpRequestBody::from(body) };
        let mut request = HttpRequest::new(body);
        let address = format!("{}/{}{}", self.bucket, escaped(ask.key), ask.query);
        *request.method_mut() = ask.method.parse().map_err(|_| "the method is none".to_owned())?;
        *request.uri_mut() = address.parse().map_err(|_| "the bucket has no possible address".to_owned())?;
        let mut headers = ask.headers.clone();
        if ask.method == "PUT" {
            headers.push(("content-length", length.to_string()));
            headers.push(("x-amz-sdk-checksum-algorithm", "SHA256".to_owned()));
            headers.push(("x-amz-checksum-sha256", BASE64.encode(hash)));
        }
        for (name, value) in headers {
            let value =
                HeaderValue::from_str(&value).map_err(|_| format!("{name} has an impossible value"))?;
            request.headers_mut().insert(name, value);
        }
        Ok(request)
    }
}

fn sha256(parts: &[Bytes]) -> digest::Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish()
}

/// As the library has errors, from which [`fault`] takes the answer.
fn wrapped(error: HttpError) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: Box::new(error) }
}

/// A key as it stands in an address and in what is signed: everything but unreserved characters and slashes is escaped.
fn escaped(key: &str) -> String {
    let mut escaped = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                escaped.push(char::from(byte));
            }
            _ => write!(escaped, "%{byte:02X}").expect("a text takes everything"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_as_the_library_does_it() {
        assert_eq!(escaped("a/b-c_d.e~0"), "a/b-c_d.e~0");
        assert_eq!(escaped("a b/ü=+"), "a%20b/%C3%BC%3D%2B");
    }

    #[test]
    fn the_digest_of_parts_is_that_of_the_whole() {
        let parts = [Bytes::from_static(b"a"), Bytes::new(), Bytes::from_static(b"bc")];
        assert_eq!(sha256(&parts).as_ref(), sha256(&[Bytes::from_static(b"abc")]).as_ref());
    }
}
