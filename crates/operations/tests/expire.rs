//! Expiring, over a repository in memory: what goes and what stays, whatever clocks, listings, other hosts and deaths do.
#![allow(clippy::unwrap_used, missing_docs)]

mod days;

use std::collections::BTreeSet;
use std::sync::Arc;

use days::{Hiding, Scene, cluster, day, expire_with, first_segment, id, request, segment};
use jiff::SignedDuration;
use operations::catalogue;
use operations::expire::{ExpireError, ExpireRequest, Plan, Report, execute, plan};
use operations::pin::{Until, pin, unpin};
use repository::lease::LeaseError;
use repository::{PackId, layout};
use storage::{Call, Calls, Fault, Faulty, LockMode, LockRule, ObjectName, Rule};

fn removed(plan: &Plan) -> Vec<&str> {
    plan.expired().map(|line| line.id.as_str()).collect()
}

#[tokio::test]
async fn every_moment_of_the_window_stays_and_what_is_older_goes() {
    let scene = Scene::of(60).await;
    let mut request = request("30d");
    request.policy.monthly = 2;
    let report = scene.expire(&request).await.unwrap();
    // The anchor and thirty days, and the newest of September.
    let kept: Vec<String> = (29..60).map(id).collect();
    assert_eq!(scene.ids().await, kept);
    assert_eq!(report.backups_expired.len(), 29);
    let expected: BTreeSet<u64> = (first_segment(29)..first_segment(60)).collect();
    assert_eq!(scene.wal(), expected);
    scene.assert_healthy().await;
    assert_eq!(scene.expire(&request).await.unwrap(), Report::default(), "there is nothing left to do");

    // With a shorter window the newest of September stands alone, with the WAL that makes it consistent.
    let mut shorter = request.clone();
    shorter.policy.keep = "7d".parse().unwrap();
    scene.expire(&shorter).await.unwrap();
    let kept: Vec<String> = [29].into_iter().chain(52..60).map(id).collect();
    assert_eq!(scene.ids().await, kept);
    let own = first_segment(29);
    let expected: BTreeSet<u64> = [own].into_iter().chain(first_segment(52)..first_segment(60)).collect();
    assert_eq!(scene.wal(), expected);
    scene.assert_healthy().await;
    let detail = catalogue::info(&scene.repository, &cluster(), &id(29)).await.unwrap();
    assert!(detail.reaches.is_some() && detail.holes.is_empty(), "{:?}", detail.holes);
}

#[tokio::test]
async fn no_clock_drives_the_policy_ahead() {
    let scene = Scene::of(60).await;
    let honest = plan(&scene.repository, &request("30d")).await.unwrap();
    let year = SignedDuration::from_hours(24 * 365);
    scene.memory.set_clock(day(59) + year);
    let jumped = ExpireRequest { host_clock: day(59) + year, ..request("30d") };
    assert_eq!(plan(&scene.repository, &jumped).await.unwrap(), honest);
    // A host or storage that is behind lets less go.
    let behind = ExpireRequest { host_clock: day(40), ..request("30d") };
    assert_eq!(removed(&plan(&scene.repository, &behind).await.unwrap()).len(), 10);
    scene.memory.set_clock(day(35));
    assert_eq!(removed(&plan(&scene.repository, &request("30d")).await.unwrap()).len(), 5);
}

#[tokio::test]
async fn a_newcomer_that_is_no_good_lets_nothing_go() {
    for what in ["torn", "pack", "wal", "small", "pages", "proved"] {
        let scene = Scene::of(5).await;
        let mut request = request("1d");
        request.policy.at_least = 1;
        scene.expire(&request).await.unwrap();
        let before = scene.ids().await;
        for number in 5..11 {
            scene.memory.set_clock(day(number));
            scene.add(number, if what == "small" { 400 } else { 1000 }, u64::from(what == "pages")).await;
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&number.to_le_bytes());
            match what {
                "torn" => scene.memory.damage(&layout::manifest(&cluster(), &id(number)), Some("x".into())),
                "pack" => scene.memory.damage(&layout::pack(PackId(raw)), None),
                "wal" => {
                    let name = layout::wal_file(&cluster(), &segment(first_segment(number)));
                    scene.memory.damage(&name, None);
                }
                "proved" => drop(request.damaged.insert(id(number), "proved".into())),
                _ => {}
            }
        }
        let planned = plan(&scene.repository, &request).await.unwrap();
        assert_eq!(removed(&planned), [] as [&str; 0], "{what}");
        scene.expire(&request).await.unwrap();
        assert!(before.iter().all(|id| planned.backups.iter().any(|line| line.keep && line.id == *id)));
        // Two good ones later they go.
        for number in 11..14 {
            scene.memory.set_clock(day(number));
            scene.add(number, 1000, 0).await;
        }
        scene.expire(&request).await.unwrap();
        assert_eq!(scene.ids().await, [id(12), id(13)], "{what}");
    }
}

#[tokio::test]
async fn without_a_good_backup_nothing_goes() {
    let scene = Scene::of(10).await;
    let damaged = (0..10).map(|number| (id(number), "proved".to_owned())).collect();
    let planned = plan(&scene.repository, &ExpireRequest { damaged, ..request("1") }).await.unwrap();
    assert!(planned.is_empty(), "{planned:?}");
}

#[tokio::test]
async fn a_pinned_backup_stays_until_its_pin_ends_by_the_storages_clock() {
    let scene = Scene::of(20).await;
    let name = cluster();
    let until = Until::Span(SignedDuration::from_hours(48));
    pin(&scene.repository, &name, &id(2), until, "before the move", "me").await.unwrap();
    pin(&scene.repository, &name, &id(3), Until::Removed, "", "me").await.unwrap();
    let planned = plan(&scene.repository, &request("7d")).await.unwrap();
    // A pin that was made after the plan stops it.
    pin(&scene.repository, &name, &id(1), Until::Removed, "", "me").await.unwrap();
    let stopped = execute(&scene.repository, &planned, &request("7d")).await.unwrap_err();
    assert!(matches!(stopped, ExpireError::Changed { .. }), "{stopped}");
    assert_eq!(scene.ids().await.len(), 20);
    unpin(&scene.repository, &name, &id(1)).await.unwrap();
    scene.expire(&request("7d")).await.unwrap();
    let kept: Vec<String> = [2, 3].into_iter().chain(12..20).map(id).collect();
    assert_eq!(scene.ids().await, kept);
    for number in [2, 3] {
        assert!(scene.wal().contains(&first_segment(number)), "the WAL that makes it consistent stays");
    }
    scene.assert_healthy().await;
    scene.memory.set_clock(day(22));
    scene.expire(&request("7d")).await.unwrap();
    assert_eq!(scene.ids().await[..2], [id(3), id(12)]);
}

#[tokio::test]
async fn of_two_at_once_each_ends_well_or_says_that_the_other_is_at_it() {
    let (scene, alone) = (Scene::of(40).await, Scene::of(40).await);
    alone.expire(&request("7d")).await.unwrap();
    let other = scene.over(scene.memory.clone());
    let request = request("7d");
    let (one, two) =
        (plan(&scene.repository, &request).await.unwrap(), plan(&other, &request).await.unwrap());
    let (first, second) =
        tokio::join!(execute(&scene.repository, &one, &request), execute(&other, &two, &request));
    for outcome in [first, second] {
        let fine = matches!(outcome, Ok(_) | Err(ExpireError::Lease(LeaseError::Held { .. })));
        assert!(fine, "{outcome:?}");
    }
    assert_eq!(scene.ids().await, alone.ids().await);
    assert_eq!(scene.wal(), alone.wal());
    // What was planned before another's run is done as far as it is not done.
    assert_eq!(execute(&scene.repository, &two, &request).await.unwrap(), Report::default());
}

#[tokio::test]
async fn a_listing_that_is_cut_short_lets_nothing_more_go() {
    let whole = Scene::of(40).await;
    pin(&whole.repository, &cluster(), &id(2), Until::Removed, "", "me").await.unwrap();
    let mut request = request("7d");
    request.policy.weekly = 3;
    let honest = whole.copy();
    honest.expire(&request).await.unwrap();
    let allowed = honest.content();
    let (mut refused, mut done) = (0, 0);
    for keep in [0, 1, 5, 17, 35, 39, 80, 110] {
        for skip in 0..16 {
            // One listing lies, or every one from then on.
            for hit in [1, u64::MAX] {
                let scene = whole.copy();
                let faulty = Arc::new(Faulty::new(scene.memory.clone()));
                let calls = Calls::Of(Call::List);
                faulty.add(Rule { calls, skip, hit, fault: Fault::Truncate(keep) });
                match expire_with(&scene.over(faulty), &request).await {
                    Ok(_) => done += 1,
                    Err(_) => refused += 1,
                }
                let left = scene.content();
                let lost: Vec<_> = allowed.iter().filter(|name| !left.contains(*name)).collect();
                let lost: Vec<_> =
                    lost.into_iter().filter(|name| !name.as_str().contains("/expired/")).collect();
                assert!(lost.is_empty(), "keep {keep} skip {skip} hit {hit}: {lost:?}");
            }
        }
    }
    assert!(refused > 20 && done > 20, "{refused} refused, {done} done");
}

#[tokio::test]
async fn a_listing_that_always_lacks_one_object_lets_nothing_more_go() {
    // Right after a run, when the window begins with the oldest backup; and two days later, with older ones kept alone.
    for (weekly, days_later) in [(0, 0), (2, 2)] {
        let whole = Scene::of(20).await;
        let mut request = request("7d");
        request.policy.weekly = weekly;
        whole.expire(&request).await.unwrap();
        for number in 20..20 + days_later {
            whole.memory.set_clock(day(number));
            whole.add(number, 1000, 0).await;
        }
        let honest = whole.copy();
        honest.expire(&request).await.unwrap();
        let allowed = honest.content();
        let mut refused = 0;
        for hidden in whole.content() {
            let scene = whole.copy();
            let hiding = Hiding { inner: scene.memory.clone(), hidden: hidden.clone() };
            refused += usize::from(expire_with(&scene.over(Arc::new(hiding)), &request).await.is_err());
            let left = scene.content();
            let is_lost =
                |name: &&_| !left.contains(*name) && !ObjectName::as_str(name).contains("/expired/");
            let lost: Vec<_> = allowed.iter().filter(is_lost).collect();
            assert!(lost.is_empty(), "without {hidden}: {lost:?}");
        }
        // Each backup that another follows, and each segment that a backup needs.
        assert!(refused >= 15, "{refused} refused");
    }
}

#[tokio::test]
async fn whoever_dies_at_any_write_is_finished_by_the_next_run() {
    let whole = Scene::of(20).await;
    let request = request("7d");
    let end = whole.copy();
    // The second run removes notes that the first still needed.
    for _ in 0..2 {
        end.expire(&request).await.unwrap();
    }
    let mut deaths = 0;
    for write in 0.. {
        let scene = whole.copy();
        let dying = Arc::new(Faulty::dying_at_write(write, scene.memory.clone()));
        let died = expire_with(&scene.over(dying), &request).await.is_err();
        // Every backup that is left can be read and has its WAL, whether or not anybody comes again.
        let planned = plan(&scene.repository, &request).await.unwrap();
        assert!(planned.backups.iter().all(|line| !line.reason.contains("broken")), "write {write}");
        scene.assert_healthy().await;
        // The lease of the dead is overtaken.
        scene.memory.set_clock(day(19) + SignedDuration::from_mins(11));
        for _ in 0..2 {
            scene.expire(&request).await.unwrap();
        }
        assert_eq!(scene.content(), end.content(), "write {write}");
        deaths += usize::from(died);
        if !died {
            break;
        }
    }
    assert!(deaths > 40, "{deaths} deaths");
}

#[tokio::test]
async fn notes_go_when_nothing_asks_for_them() {
    let scene = Scene::of(20).await;
    scene.expire(&request("7d")).await.unwrap();
    assert_eq!(scene.repository.expired(&cluster()).await.unwrap().backups.len(), 12);
    scene.expire(&request("7d")).await.unwrap();
    let left = scene.repository.expired(&cluster()).await.unwrap();
    assert_eq!(left.backups, BTreeSet::from([id(11)]), "which the oldest one follows");
    scene.assert_healthy().await;
    // A backup that is gone without a note is missed.
    scene.memory.damage(&layout::manifest(&cluster(), &id(15)), None);
    let listing = catalogue::list(&scene.repository, &cluster()).await.unwrap();
    assert!(listing.chain[0].contains(&id(15)), "{:?}", listing.chain);
}

#[tokio::test]
async fn wal_stays_that_a_new_timeline_or_a_backup_at_work_may_need() {
    let scene = Scene::of(60).await;
    // An old backup was restored and promoted: its WAL lies before the window, and no backup is on it yet.
    let begun: pg::wal::FileName = format!("0000000200000000{:08X}", first_segment(3)).parse().unwrap();
    let info = repository::archive::WalInfo::new(&begun, 5, day(59));
    scene.repository.store_wal(&cluster(), &begun, b"12345", &info, 1).await.unwrap();
    let planned = plan(&scene.repository, &request("30d")).await.unwrap();
    let names: BTreeSet<&str> = planned.wal.iter().map(|line| line.name.as_str()).collect();
    assert!(names.contains(&*segment(first_segment(3)).to_string()), "the old timeline's goes");
    assert!(!names.contains(&*begun.to_string()), "the new one's stays");

    // One that began after the window did needs nothing before it, one that began earlier may need anything.
    for (began, goes) in [(45, true), (10, false)] {
        let scene = scene.copy();
        let claimed = id(began).replace("full", "incremental");
        scene.repository.claim(&cluster(), &claimed, "somebody").await.unwrap();
        let planned = plan(&scene.repository, &request("30d")).await.unwrap();
        assert_eq!((planned.wal.is_empty(), planned.expired().count()), (!goes, 29), "{claimed}");
    }
}

#[tokio::test]
async fn what_is_locked_stays_until_its_time_and_is_whole_until_then() {
    let scene = Scene::of(0).await;
    let days = |days: i64| std::time::Duration::from_secs(days as u64 * 24 * 3600);
    scene.memory.set_lock(Some(LockRule {
        span: days(30),
        mode: LockMode::Governance,
        time_for: layout::lock_time,
    }));
    for number in 0..60 {
        scene.memory.set_clock(day(number));
        scene.add(number, 1000, 0).await;
    }
    let planned = plan(&scene.repository, &request("10d")).await.unwrap();
    let locked: Vec<_> = planned.backups.iter().filter(|line| line.locked_until.is_some()).collect();
    assert_eq!(
        locked.iter().map(|line| line.id.clone()).collect::<Vec<_>>(),
        (30..49).map(id).collect::<Vec<_>>()
    );
    assert!(
        locked.iter().all(|line| line.keep && line.reason.starts_with("locked until 2026-")),
        "{locked:?}"
    );
    assert_eq!(planned.backups[30].locked_until, Some(day(60)));
    scene.expire(&request("10d")).await.unwrap();
    assert_eq!(scene.ids().await, (30..60).map(id).collect::<Vec<_>>());
    // Their WAL was stored when they were made, and all of it is locked.
    assert_eq!(scene.wal(), (first_segment(30)..first_segment(60)).collect());
    assert!(
        planned.wal_locked.objects > 0 && planned.wal_locked.until == Some(day(60)),
        "{:?}",
        planned.wal_locked
    );
    scene.assert_healthy().await;

    scene.memory.set_clock(day(69));
    let later = ExpireRequest { host_clock: day(69), ..request("10d") };
    scene.expire(&later).await.unwrap();
    assert_eq!(scene.ids().await, (40..60).map(id).collect::<Vec<_>>());
    scene.memory.set_clock(day(99));
    let later = ExpireRequest { host_clock: day(99), ..request("10d") };
    scene.expire(&later).await.unwrap();
    assert_eq!(scene.ids().await, (49..60).map(id).collect::<Vec<_>>());
    assert_eq!(scene.wal(), (first_segment(49)..first_segment(60)).collect());
    scene.assert_healthy().await;
}
