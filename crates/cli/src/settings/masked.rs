//! Values as they may be shown.

use super::keys::{Key, Shown};

/// The value without anything secret in it.
pub fn masked(key: &Key, value: &str) -> String {
    match key.shown {
        Shown::Yes => value.to_owned(),
        Shown::Never => "(set)".to_owned(),
        Shown::WithoutPassword => without_password(value),
    }
}

/// A connection string without its password. What cannot be understood for certain is not shown at all.
fn without_password(text: &str) -> String {
    let hidden = || "(set)".to_owned();
    let Some((scheme, rest)) = text.split_once("://") else {
        // In a keyword string anything may be quoted; only one that speaks of no secret is shown.
        let lower = text.to_lowercase();
        return if lower.contains("pass") || lower.contains("secret") { hidden() } else { text.to_owned() };
    };
    // The last @ ends the user and password even where an unescaped one stands in the password.
    let (account, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    let place_lower = place.to_lowercase();
    if place_lower.contains("pass")
        || place_lower.contains("secret")
        || (account.is_empty() && rest.contains('@'))
    {
        return hidden();
    }
    match account.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:***@{place}"),
        None if account.is_empty() => format!("{scheme}://{place}"),
        None => format!("{scheme}://{account}@{place}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_blotted_out_of_every_form() {
        let cases = [
            ("postgres://user:hunter2@host/db", "postgres://user:***@host/db"),
            ("postgres://user:hun@ter2@host/db", "postgres://user:***@host/db"),
            ("postgres://user@host/db", "postgres://user@host/db"),
            ("postgres:///db?password=hunter2", "(set)"),
            ("postgres://:hunter2@host", "postgres://:***@host"),
            ("host=/tmp password='hunter2'", "(set)"),
            ("host=/tmp user=me", "host=/tmp user=me"),
        ];
        for (text, shown) in cases {
            assert_eq!(without_password(text), shown);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_password_shows(user in "[a-z]{0,5}", password in "[A-Z@:/?#]{1,12}Z9", host in "[a-z]{0,6}") {
            let shown = without_password(&format!("postgres://{user}:{password}@{host}/db"));
            proptest::prop_assert!(!shown.contains("Z9"), "{shown}");
        }
    }
}
