//! Names and numbers of system users, and what this process is called among many hosts.

/// The name of the user with this number, from the system's user database file.
///
/// Reads `/etc/passwd` only: users of other name services have no name here, and their number is used instead.
pub fn name_of(uid: u32) -> Option<String> {
    lines().find(|user| user.uid == uid).map(|user| user.name)
}

/// User and group numbers of a user by name, or by number where the text is one.
pub fn ids_of(owner: &str) -> Option<(u32, u32)> {
    let by_number = owner.parse::<u32>().ok();
    let found = lines().find(|user| user.name == owner || Some(user.uid) == by_number);
    found.map(|user| (user.uid, user.gid)).or(by_number.map(|uid| (uid, uid)))
}

/// Host and process, for people who look who holds what.
pub fn holder() -> String {
    format!("{}, process {}", host_name(), std::process::id())
}

/// What this host is called.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

struct User {
    name: String,
    uid: u32,
    gid: u32,
}

fn lines() -> impl Iterator<Item = User> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let users: Vec<User> = text.lines().filter_map(parse).collect();
    users.into_iter()
}

fn parse(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(User { name, uid, gid })
}

#[cfg(test)]
mod tests {
    #[test]
    fn root_has_a_name_and_numbers() {
        assert_eq!(super::name_of(0).as_deref(), Some("root"));
        assert_eq!(super::ids_of("root"), Some((0, 0)));
        assert_eq!(super::ids_of("4242"), Some((4242, 4242)));
        assert_eq!(super::ids_of("no such user"), None);
    }
}
