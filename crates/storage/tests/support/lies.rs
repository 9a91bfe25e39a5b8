//! Answers that are not what they should be, as bad networks, proxies, login pages and half-compatible servers give them.

use super::bucket::{Bucket, Quirk, error};
use super::http::{Ending, Reply, Request};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub const LOGIN: &str =
    "<!DOCTYPE html><html><head><title>Log in</title></head><body>Welcome to the airport</body></html>";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Status500,
    SlowDown503,
    TooMany429,
    Conflict409,
    Forbidden403,
    Bare403,
    Bare404,
    Html404,
    Html200,
    ErrorXml200,
    ShortBody,
    Reset,
    ResetAfterDoing,
    Silence,
    BareRedirect,
}

/// Faults of the transport and of what stands before the store.
pub const KINDS: [Kind; 15] = [
    Kind::Status500,
    Kind::SlowDown503,
    Kind::TooMany429,
    Kind::Conflict409,
    Kind::Forbidden403,
    Kind::Bare403,
    Kind::Bare404,
    Kind::Html404,
    Kind::Html200,
    Kind::ErrorXml200,
    Kind::ShortBody,
    Kind::Reset,
    Kind::ResetAfterDoing,
    Kind::Silence,
    Kind::BareRedirect,
];

impl Kind {
    pub fn apply(self, bucket: &Bucket, request: &Request) -> Reply {
        let empty = || Reply::new(200, "");
        match self {
            Kind::Status500 => Reply::new(500, "oops"),
            Kind::SlowDown503 => error(503, "SlowDown"),
            Kind::TooMany429 => Reply::new(429, ""),
            Kind::Conflict409 => error(409, "ConditionalRequestConflict"),
            Kind::Forbidden403 => error(403, "AccessDenied"),
            Kind::Bare403 => Reply::new(403, ""),
            Kind::Bare404 => Reply::new(404, ""),
            Kind::Html404 => Reply::new(404, LOGIN),
            Kind::Html200 => Reply::new(200, LOGIN).header("ETag", "\"e\""),
            Kind::ErrorXml200 => Reply { status: 200, ..error(200, "InternalError") }.header("ETag", "\"e\""),
            Kind::ShortBody => match bucket.answer(request) {
                reply if reply.body.is_empty() => reply.ending(Ending::Reset),
                reply => reply.ending(Ending::HalfBody),
            },
            Kind::Reset => empty().ending(Ending::Reset),
            Kind::ResetAfterDoing => bucket.answer(request).ending(Ending::Reset),
            Kind::Silence => empty().ending(Ending::Silence),
            Kind::BareRedirect => Reply::new(301, ""),
        }
    }

    /// Whether the fault looks like one that passes.
    pub fn passes(self) -> bool {
        !matches!(
            self,
            Kind::Forbidden403
                | Kind::Bare403
                | Kind::Bare404
                | Kind::Html404
                | Kind::Html200
                | Kind::BareRedirect
        )
    }
}

/// What a store that means harm, or is broken, says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    Fault(Kind),
    /// An error with status 200 whose element has a namespace, or an envelope.
    NamespacedError200,
    EnvelopedError200,
    JsonError200,
    /// Nothing at all, as a success.
    Empty200,
    NoContent204,
    /// The way leads back to where it began, or to a login page.
    RedirectLoop,
    RedirectToLogin,
    /// The head promises more, or fewer, bytes than come.
    LongLength,
    ShortLength,
    ResetInBody,
    /// The range of another place, or of another length, than was asked for.
    OtherRange,
    NoEtag,
    OddEtag,
    IgnoresConditions,
    KnowsNoConditions,
    /// It is done, but the answer is an error.
    DoneAnd503,
    DoneAnd500,
    /// The listing as it was a while ago.
    StaleListing,
    /// A page comes again before the next one.
    DuplicatePages,
    LoopingToken,
    /// Every page leads to another, which brings nothing new.
    EndlessTokens,
    /// A page is left out.
    MissingPage,
    /// There is more, and no way to it.
    NoToken,
    /// The listing's text ends in the middle, and its length says that this is all.
    CutListing,
}

pub const LIES: [Lie; 24] = [
    Lie::NamespacedError200,
    Lie::EnvelopedError200,
    Lie::JsonError200,
    Lie::Empty200,
    Lie::NoContent204,
    Lie::RedirectLoop,
    Lie::RedirectToLogin,
    Lie::LongLength,
    Lie::ShortLength,
    Lie::ResetInBody,
    Lie::OtherRange,
    Lie::NoEtag,
    Lie::OddEtag,
    Lie::IgnoresConditions,
    Lie::KnowsNoConditions,
    Lie::DoneAnd503,
    Lie::DoneAnd500,
    Lie::StaleListing,
    Lie::DuplicatePages,
    Lie::LoopingToken,
    Lie::EndlessTokens,
    Lie::MissingPage,
    Lie::NoToken,
    Lie::CutListing,
];

/// What was there a while ago, and is no longer.
pub const GONE: &str = "some/prefix/kept/gone";

impl Lie {
    /// All of them, the plain faults first.
    pub fn all() -> impl Iterator<Item = Lie> {
        KINDS.into_iter().map(Lie::Fault).chain(LIES)
    }

    /// Whether a listing may be incomplete or old without anybody being able to tell.
    pub fn is_unseen(self) -> bool {
        matches!(self, Lie::StaleListing | Lie::MissingPage)
    }

    /// Whether only the probe of `init` can tell that a taken name is not kept.
    pub fn overwrites(self) -> bool {
        self == Lie::IgnoresConditions
    }

    pub fn tell(self, bucket: &Bucket, request: &Request) -> Reply {
        let tagged = |text: &str| Reply::new(200, text).header("ETag", "\"e\"");
        let done = || bucket.answer(request);
        match self {
            Lie::Fault(kind) => kind.apply(bucket, request),
            Lie::NamespacedError200 => tagged(
                "<?xml version=\"1.0\"?><Error xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Code>InternalError</Code></Error>",
            ),
            Lie::EnvelopedError200 => {
                tagged("<ErrorResponse><Error ><Code>SlowDown</Code></Error></ErrorResponse>")
            }
            Lie::JsonError200 => tagged("{\"error\": {\"code\": 500, \"message\": \"backend\"}}"),
            Lie::Empty200 if request.method == "GET" => Reply::new(200, ""),
            Lie::NoContent204 if request.method != "DELETE" => Reply::new(204, ""),
            Lie::RedirectLoop => Reply::new(307, "").header("Location", "/bucket/round"),
            Lie::RedirectToLogin if request.path == "/login" => Reply::new(200, LOGIN),
            Lie::RedirectToLogin => Reply::new(302, "").header("Location", "/login"),
            Lie::LongLength => lengthened(done(), 7).ending(Ending::HalfBody),
            Lie::ShortLength => lengthened(done(), -1),
            Lie::ResetInBody => done().ending(Ending::HalfBodyReset),
            Lie::OtherRange => moved_range(done()),
            Lie::NoEtag => bucket.with(Quirk::NoEtag).answer(request),
            Lie::OddEtag => bucket.with(Quirk::OddEtag).answer(request),
            Lie::IgnoresConditions => bucket.with(Quirk::IgnoresConditions).answer(request),
            Lie::KnowsNoConditions => bucket.with(Quirk::KnowsNoConditions).answer(request),
            Lie::DoneAnd503 | Lie::DoneAnd500 => {
                done();
                error(if self == Lie::DoneAnd503 { 503 } else { 500 }, "InternalError")
            }
            _ if request.query.contains_key("list-type") => self.listing(bucket, request),
            _ => done(),
        }
    }

    fn listing(self, bucket: &Bucket, request: &Request) -> Reply {
        let page = bucket.answer(request);
        let token = request.query.get("continuation-token").cloned().unwrap_or_default();
        match self {
            Lie::StaleListing => {
                let past = Bucket::new(bucket.dialect, Quirk::None);
                let mut objects = bucket.objects.lock().unwrap().clone();
                objects.pop_first();
                objects.insert(GONE.to_owned(), Vec::new());
                *past.objects.lock().unwrap() = objects;
                past.answer(request)
            }
            Lie::DuplicatePages => match token.strip_suffix("~") {
                Some(token) => bucket.answer(&with_token(request, token)),
                None if token.is_empty() => page,
                None => leading_to(bucket.answer(&with_token(request, "")), Some(&format!("{token}~"))),
            },
            Lie::LoopingToken => leading_to(page, Some("round")),
            Lie::EndlessTokens => {
                static NEXT: AtomicU64 = AtomicU64::new(0);
                // Before every key: a store that reads it as a key begins again.
                let next = format!("0-{}", NEXT.fetch_add(1, Relaxed));
                leading_to(bucket.answer(&with_token(request, "")), Some(&next))
            }
            Lie::MissingPage => match next_token(&page) {
                Some(next) => {
                    let beyond = next_token(&bucket.answer(&with_token(request, &next)));
                    leading_to(page, beyond.as_deref())
                }
                None => page,
            },
            Lie::NoToken => {
                let text = text(&leading_to(page, None));
                reply(text.replace("<IsTruncated>false", "<IsTruncated>true"))
            }
            Lie::CutListing => {
                let text = text(&page);
                reply(text[..text.len() - text.len() / 3].to_owned())
            }
            _ => page,
        }
    }
}

fn lengthened(reply: Reply, by: isize) -> Reply {
    let length = reply.body.len().saturating_add_signed(by);
    if reply.body.is_empty() { reply } else { reply.header("Content-Length", length) }
}

fn moved_range(mut reply: Reply) -> Reply {
    for (name, value) in &mut reply.headers {
        if name == "Content-Range"
            && let Some((range, size)) = value.trim_start_matches("bytes ").split_once('/')
            && let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) = (start.parse::<u64>(), end.parse::<u64>())
        {
            *value = format!("bytes {}-{}/{size}", start + 1, end + 1);
        }
    }
    reply
}

fn with_token(request: &Request, token: &str) -> Request {
    let mut request = request.clone();
    request.query.insert("continuation-token".to_owned(), token.to_owned());
    request
}

fn text(page: &Reply) -> String {
    String::from_utf8(page.body.clone()).unwrap()
}

fn reply(text: String) -> Reply {
    Reply::new(200, text)
}

fn next_token(page: &Reply) -> Option<String> {
    let text = text(page);
    let (_, rest) = text.split_once("<NextContinuationToken>")?;
    Some(rest.split_once('<')?.0.to_owned())
}

/// The page with another way to the next one, or none.
fn leading_to(page: Reply, token: Option<&str>) -> Reply {
    let mut text = text(&page);
    if let Some(old) = next_token(&page) {
        text = text.replace(&format!("<NextContinuationToken>{old}</NextContinuationToken>"), "");
    }
    let (more, way) = match token {
        Some(token) => (true, format!("<NextContinuationToken>{token}</NextContinuationToken>")),
        None => (false, String::new()),
    };
    text = text.replace("<IsTruncated>true", "<IsTruncated>false");
    text = text.replace("<IsTruncated>false", &format!("<IsTruncated>{more}"));
    reply(text.replace("</ListBucketResult>", &format!("{way}</ListBucketResult>")))
}
