//! What the XML of an answer says, as far as anybody asks.

/// Whether an error is told somewhere in the text, whatever namespace its element has.
pub(super) fn is_error(text: &str) -> bool {
    text.match_indices("<Error")
        .any(|(at, tag)| text[at + tag.len()..].starts_with(['>', ' ', '\n', '\r', '\t']))
}

/// Whether the text is one document with this root element, from its first tag to its last.
pub(super) fn is_document(text: &str, root: &str) -> bool {
    let text = text.trim_start_matches('\u{feff}').trim();
    let text = match text.strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>").map_or("", |(_, rest)| rest).trim_start(),
        None => text,
    };
    let opened = text.strip_prefix('<').and_then(|rest| rest.strip_prefix(root));
    let closed = text.ends_with(&format!("</{root}>")) || text.ends_with("/>");
    opened.is_some_and(|rest| rest.starts_with(['>', ' ', '/', '\n', '\r', '\t'])) && closed
}

/// The text between the first `<name>` and its end, if it is not empty.
pub(super) fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inside, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inside.trim()).filter(|inside| !inside.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_in_any_namespace() {
        for text in ["<Error>", "<a><Error xmlns=\"x\">", "<Error\n>"] {
            assert!(is_error(text), "{text}");
        }
        assert!(!is_error("<Errors>") && !is_error("Error") && !is_error("<Error"));
    }

    #[test]
    fn only_a_whole_listing_is_a_listing() {
        let listing =
            "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\"><Name>b</Name></ListBucketResult>\n";
        assert!(is_document(listing, "ListBucketResult"));
        for cut in 1..listing.len() - 1 {
            assert!(!is_document(&listing[..cut], "ListBucketResult"), "{cut}");
        }
        assert!(!is_document("<ListBucketResults></ListBucketResults>", "ListBucketResult"));
        assert!(!is_document("<html><ListBucketResult></ListBucketResult></html>", "ListBucketResult"));
        assert_eq!(element("<a><Code> X </Code></a>", "Code"), Some("X"));
        assert_eq!(element("<Code></Code>", "Code"), None);
        assert_eq!(element("<Code>X", "Code"), None);
    }
}
