//! Random histories against a model that is written from `docs/retention.md` rule by rule, by other means than the code: it
//! asks of each backup and each moment by itself.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

/// `PGKEEP_TEST_HISTORIES=10000` tries as many.
fn histories() -> u64 {
    std::env::var("PGKEEP_TEST_HISTORIES").map_or(2000, |text| text.parse().unwrap())
}

const HOUR: i64 = 3600;

fn at(hours: i64) -> Timestamp {
    // A Wednesday.
    Timestamp::from_second(1_790_000_000 + hours * HOUR).unwrap()
}

fn fact(id: usize, stop: Option<Timestamp>, standing: Standing) -> Fact {
    Fact { id: format!("b{id}"), stop, standing, pin: None }
}

fn policy(keep: &str) -> Policy {
    Policy { keep: keep.parse().unwrap(), daily: 0, weekly: 0, monthly: 0, yearly: 0, at_least: 1 }
}

struct History {
    policy: Policy,
    facts: Vec<Fact>,
    clock: Timestamp,
}

fn history(random: &mut StdRng) -> History {
    let count = random.random_range(0..40);
    let (mut hour, mut facts) = (0, Vec::new());
    for id in 0..count {
        hour += random.random_range(1..80);
        // Some clocks stood wrong.
        let told = if random.random_bool(0.05) { hour + random.random_range(-9000..9000) } else { hour };
        let standing = match random.random_range(0..10) {
            0 => Standing::Suspect("small".into()),
            1 | 2 => Standing::Broken("gone".into()),
            _ => Standing::Good,
        };
        let unknown = matches!(standing, Standing::Broken(_)) && random.random_bool(0.1);
        let mut fact = fact(id, (!unknown).then(|| at(told)), standing);
        fact.pin = random.random_bool(0.05).then(String::new);
        facts.push(fact);
    }
    let keep = if random.random_bool(0.3) {
        Keep::Backups(random.random_range(1..8))
    } else {
        Keep::Span(SignedDuration::from_hours(random.random_range(1..1500)))
    };
    let mut few = || random.random_range(0..5);
    let (daily, weekly, monthly, yearly, at_least) = (few(), few(), few(), few(), few());
    let policy = Policy { keep, daily, weekly, monthly, yearly, at_least };
    let jumped = if random.random_bool(0.2) { 9000 } else { 0 };
    History { policy, facts, clock: at(hour + jumped - random.random_range(0..100)) }
}

/// Whether the rules keep backup `one`, and whether with all WAL from its start on.
fn model(history: &History, one: usize) -> (bool, bool) {
    let (policy, facts) = (&history.policy, &history.facts);
    let good = |at: usize| facts[at].standing == Standing::Good;
    let goods: Vec<usize> = (0..facts.len()).filter(|&at| good(at)).collect();
    let Some(&last) = goods.last() else { return (true, true) };
    let now = history.clock.min(facts[last].stop.unwrap());
    let Some(stop) = facts[one].stop else { return (true, true) };
    // The window.
    let in_window = match policy.keep {
        // Fewer than so many good ones come after it, or it is younger than the oldest of them.
        Keep::Backups(count) => {
            let later = goods.iter().filter(|&&at| at > one).count() + usize::from(good(one));
            later <= count as usize && good(one) || later < count as usize || {
                let oldest = goods[goods.len().saturating_sub(count as usize)];
                one >= oldest
            }
        }
        Keep::Span(span) => {
            let begin = now - span;
            let nearest = goods.iter().map(|&at| facts[at].stop.unwrap()).filter(|stop| *stop <= begin).max();
            let anchor = goods.iter().rev().find(|&&at| Some(facts[at].stop.unwrap()) == nearest);
            stop > begin || anchor.is_none_or(|anchor| one >= *anchor)
        }
    };
    if in_window {
        return (true, true);
    }
    let at_least = policy.at_least.max(1) as usize;
    let newest_of = |count: u32, name: fn(Timestamp) -> String| {
        let counted = |at: usize| good(at) && facts[at].stop.unwrap() <= now;
        let is_newest = |at: usize| {
            (0..facts.len()).filter(|&other| counted(other)).all(|other| {
                let (mine, theirs) = (facts[at].stop.unwrap(), facts[other].stop.unwrap());
                name(mine) != name(theirs) || (theirs, other) <= (mine, at)
            })
        };
        let later = (0..facts.len()).filter(|&other| counted(other) && is_newest(other));
        counted(one)
            && is_newest(one)
            && later.filter(|&other| facts[other].stop.unwrap() > stop).count() < count as usize
    };
    let kept = facts[one].pin.is_some()
        || good(one) && goods.iter().filter(|&&at| at > one).count() < at_least
        || !good(one) && goods.len() < at_least
        || newest_of(policy.daily, |at| at.strftime("%Y-%m-%d").to_string())
        || newest_of(policy.weekly, |at| at.strftime("%G-%V").to_string())
        || newest_of(policy.monthly, |at| at.strftime("%Y-%m").to_string())
        || newest_of(policy.yearly, |at| at.strftime("%Y").to_string());
    (kept, false)
}

#[test]
fn random_histories_are_decided_as_the_rules_say() {
    let mut dropped = 0;
    for seed in 0..histories() {
        let history = history(&mut StdRng::seed_from_u64(seed));
        let now = policy_now(&history.facts, &[history.clock]);
        let decisions = decide(&history.policy, now, &history.facts);
        for (one, decision) in decisions.iter().enumerate() {
            let expected = model(&history, one);
            let found = (decision.keep, decision.in_window);
            assert_eq!(found, expected, "seed {seed}, backup {one}: {decision:?} {:?}", history.facts);
            dropped += usize::from(!decision.keep);
        }
        // What must hold whatever the rules are.
        let good = |at: &usize| history.facts[*at].standing == Standing::Good;
        let goods = (0..history.facts.len()).filter(good).count();
        let kept = (0..history.facts.len()).filter(|at| good(at) && decisions[*at].keep).count();
        assert!(kept >= goods.min(history.policy.at_least.max(1) as usize), "seed {seed}");
        if let Some(newest) = (0..history.facts.len()).rev().find(good) {
            assert!(
                decisions[newest].in_window,
                "seed {seed}: the newest good backup is always in the window"
            );
        }
    }
    assert!(dropped > histories() as usize, "the histories are too tame: {dropped}");
}

#[test]
fn every_moment_of_the_window_is_restorable() {
    let facts: Vec<Fact> = (0..60).map(|day| fact(day, Some(at(day as i64 * 24)), Standing::Good)).collect();
    let now = policy_now(&facts, &[at(10_000)]);
    assert_eq!(now, facts[59].stop, "backups that stopped let nothing go");
    let decisions = decide(&policy("30d"), now, &facts);
    let kept: Vec<usize> = (0..60).filter(|&day| decisions[day].keep).collect();
    assert_eq!(kept, (29..60).collect::<Vec<_>>(), "thirty days, and the backup at their beginning");
    // A year later by the host's clock nothing else goes.
    assert_eq!(decide(&policy("30d"), policy_now(&facts, &[at(20_000)]), &facts), decisions);
    // A host that is behind keeps more.
    let behind = decide(&policy("30d"), policy_now(&facts, &[at(40 * 24)]), &facts);
    assert!(behind.iter().filter(|one| one.keep).count() > 31);
}

#[test]
fn a_newcomer_that_is_no_good_takes_no_place() {
    for standing in [Standing::Broken("torn".into()), Standing::Suspect("small".into())] {
        let mut facts = vec![fact(0, Some(at(0)), Standing::Good)];
        facts.extend((1..100).map(|day| fact(day, Some(at(day as i64 * 24)), standing.clone())));
        for keep in ["1", "1d"] {
            let decisions = decide(&policy(keep), policy_now(&facts, &[at(5000)]), &facts);
            assert!(decisions[0].in_window, "{keep}: {:?}", decisions[0]);
        }
    }
}

#[test]
fn spans_and_numbers_are_read() {
    assert_eq!("14".parse(), Ok(Keep::Backups(14)));
    assert_eq!("30d".parse(), Ok(Keep::Span(SignedDuration::from_hours(720))));
    assert_eq!("12w".parse(), Ok(Keep::Span(SignedDuration::from_hours(12 * 168))));
    for text in ["", "0", "0d", "d", "-1d", "30 d", "30m", "1.5d", "99999999999", "é"] {
        assert!(text.parse::<Keep>().is_err(), "{text}");
    }
    assert!("4294967295w".parse::<Keep>().is_ok());
}
