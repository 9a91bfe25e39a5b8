use super::*;

#[test]
fn ids_rise_even_when_the_clock_goes_back() {
    let now: Timestamp = "2026-11-22T02:00:00Z".parse().unwrap();
    let first = backup_id(now, "full", None);
    assert_eq!(first, "20261122T020000Z-full");
    let second = backup_id(now, "incremental", Some(&first));
    assert_eq!(second, "20261122T020001Z-incremental");
    let back = backup_id("2026-11-21T00:00:00Z".parse().unwrap(), "full", Some(&second));
    assert_eq!(back, "20261122T020002Z-full");
}
