//! What earlier verifications found damaged, and nobody found whole since.

use repository::moved::StoredPack;
use repository::proof::{Damage, Proofs};
use repository::{ClusterName, PackId, Repository, RepositoryError, layout};

use crate::findings::Finding;

/// What is known to be damaged, by the proofs of earlier verifications.
#[derive(Clone, Debug, Default)]
pub struct KnownDamage {
    /// Packs.
    pub packs: Vec<PackId>,
    /// Backups that need one of them, or whose manifest is damaged.
    pub backups: Vec<String>,
}

/// Asks the proofs of a cluster what is damaged. A proof that cannot be read is left out.
pub async fn known_damage(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<KnownDamage, RepositoryError> {
    let proofs = repository.proofs(cluster).await?;
    let mut known = KnownDamage::default();
    for (object, damage) in standing_damage(repository, &proofs).await? {
        known.packs.extend(layout::parse_pack(object));
        known.backups.extend(damage.backups.iter().cloned());
    }
    known.backups.sort();
    known.backups.dedup();
    Ok(known)
}

/// What was found damaged and not found whole since. A pack that was moved is left out: what was moved out of it was whole, and
/// nothing else of it is named. So is anything else that is not there: it expired, or its absence is told as such.
pub(crate) async fn standing_damage<'p>(
    repository: &Repository,
    proofs: &'p Proofs,
) -> Result<Vec<(&'p str, &'p Damage)>, RepositoryError> {
    let mut standing = Vec::new();
    for (object, _, damage) in proofs.damaged() {
        let stands = match (layout::parse_pack(object), layout::written(object)) {
            (Some(id), _) => repository.stored_pack(id).await? != StoredPack::Moved,
            (None, Some(name)) => repository.stored_size(&name).await?.is_some(),
            (None, None) => false,
        };
        if stands {
            standing.push((object, damage));
        }
    }
    Ok(standing)
}

/// Adds a finding of known damage, unless something was found against the same object.
pub(crate) fn tell(findings: &mut Vec<Finding>, object: &str, damage: &Damage, how: &str, hurt: Vec<String>) {
    if !findings.iter().any(|finding| finding.object.as_deref() == Some(object)) {
        findings.push(Finding::damage(damage.what.clone(), how).of(object).hurting(hurt));
    }
}
