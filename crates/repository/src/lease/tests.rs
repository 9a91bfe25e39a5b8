use storage::{Call, Calls, Fault, Faulty, Memory, Rule, Storage};

use super::*;
use crate::description::Description;
use crate::secrets::{Keyring, RepositoryId};

async fn repository(storage: Arc<dyn Storage>, create_only: bool) -> Arc<Repository> {
    let keyring = Keyring::generate(RepositoryId::random());
    let description = Description::new(&keyring.writer, "2026-11-22T00:00:00Z".parse().unwrap(), create_only);
    Arc::new(Repository::create(storage, keyring, &[], description, None).await.unwrap())
}

async fn take(repository: &Arc<Repository>, who: &str) -> Result<Lease, LeaseError> {
    Lease::take(repository, "maintenance", who, Duration::ZERO).await
}

#[tokio::test(start_paused = true)]
async fn one_has_it_until_it_is_given_back_and_numbers_only_grow() {
    let repository = repository(Arc::new(Memory::new()), true).await;
    let mut first = take(&repository, "one").await.unwrap();
    let refused = take(&repository, "two").await.err().unwrap();
    assert_eq!(refused.to_string(), "maintenance is being done by one already");
    first.confirm().await.unwrap();
    let number = first.number();
    first.release().await.unwrap();
    let second = take(&repository, "two").await.unwrap();
    assert!(second.number() > number);
}

#[tokio::test(start_paused = true)]
async fn old_steps_go_and_a_listing_that_lacks_the_newest_gives_nobody_the_lease() {
    let memory = Arc::new(Memory::new());
    let faulty = Arc::new(Faulty::new(memory.clone()));
    let repository = repository(faulty.clone(), true).await;
    let noon: jiff::Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
    memory.set_clock(noon);
    take(&repository, "one").await.unwrap().release().await.unwrap();
    let mut second = take(&repository, "two").await.unwrap();
    for fault in [Fault::Truncate(0), Fault::Truncate(1), Fault::Stale, Fault::Omit(2)] {
        faulty.add(Rule { calls: Calls::Of(Call::List), skip: 0, hit: 1, fault: fault.clone() });
        assert!(matches!(take(&repository, "three").await, Err(LeaseError::Held { .. })), "{fault:?}");
        second.confirm().await.unwrap();
    }
    assert_eq!(steps(&repository, "maintenance").await.unwrap().len(), 3);
    memory.set_clock(noon + KEPT + LEASE_TIME);
    let mut third = take(&repository, "three").await.unwrap();
    assert_eq!(steps(&repository, "maintenance").await.unwrap().len(), KEPT_STEPS);
    for fault in [Fault::Omit(KEPT_STEPS - 1), Fault::Truncate(1)] {
        faulty.add(Rule { calls: Calls::Of(Call::List), skip: 0, hit: 1, fault: fault.clone() });
        assert!(matches!(take(&repository, "four").await, Err(LeaseError::Held { .. })), "{fault:?}");
        third.confirm().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_go_on_is_overtaken_by_the_storages_clock_and_told() {
    let memory = Arc::new(Memory::new());
    let repository = repository(memory.clone(), true).await;
    let noon: jiff::Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
    memory.set_clock(noon);
    let mut slow = take(&repository, "slow").await.unwrap();
    memory.set_clock(noon + LEASE_TIME - Duration::from_secs(1));
    assert!(matches!(take(&repository, "fast").await, Err(LeaseError::Held { .. })));
    memory.set_clock(noon + LEASE_TIME + Duration::from_secs(1));
    let mut fast = take(&repository, "fast").await.unwrap();
    assert!(matches!(slow.confirm().await, Err(LeaseError::Lost { .. })));
    fast.confirm().await.unwrap();
    // Even when it is time to go on, the slow one cannot take it back.
    tokio::time::advance(RENEW_AFTER).await;
    assert!(matches!(slow.confirm().await, Err(LeaseError::Lost { .. })));
    fast.confirm().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_two_that_wrote_at_once_without_conditions_one_is_told() {
    let memory = Arc::new(Memory::new());
    let repository = repository(memory.clone(), false).await;
    let mut first = take(&repository, "one").await.unwrap();
    // The other's write came through although the name was taken.
    let name = layout::lease("maintenance", first.number());
    memory.damage(&name, None);
    let other = Step { owner: 1, holder: "two".into(), seconds: 300, released: false };
    repository.write_note(Kind::Lease, &name, &other).await.unwrap();
    assert!(matches!(first.confirm().await, Err(LeaseError::Lost { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_not_ours_holds_nobody_up_for_ever() {
    let memory = Arc::new(Memory::new());
    let repository = repository(memory.clone(), true).await;
    let noon: jiff::Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
    memory.set_clock(noon);
    memory.create(&layout::lease("maintenance", 7), &["junk".into()]).await.unwrap();
    assert!(matches!(take(&repository, "one").await, Err(LeaseError::Held { .. })));
    memory.set_clock(noon + 2 * LEASE_TIME);
    assert_eq!(take(&repository, "one").await.unwrap().number(), 8);
}
