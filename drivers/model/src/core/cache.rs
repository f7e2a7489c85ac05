//! Caches that hold every version that hardware may hold.
//!
//! Hardware may fetch at any time, keep what it fetched, drop it, or fetch again. A model therefore keeps all
//! versions seen, and a lookup gives all of them. An invalidation *dooms* what it covers: doomed versions may
//! still be used, and go when the synchronisation behind the invalidation completes ([`Versions::commit`]). A
//! version that is seen in memory again after the invalidation is no longer doomed: hardware may have fetched it
//! anew, and only another invalidation gets rid of it. What hardware finds *by way of* a doomed version (a walk
//! from a stale table pointer) goes with it: such finds are reported with [`Versions::observe_doomed`].

use std::collections::BTreeMap;

#[derive(Clone, Debug)]
struct Version<V> {
    value: V,
    doomed: bool,
}

/// Versions of values by key: translations, table pointers.
#[derive(Clone, Debug)]
pub struct Versions<K, V> {
    entries: BTreeMap<K, Vec<Version<V>>>,
    doomed: bool,
}

impl<K: Ord, V> Default for Versions<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), doomed: false }
    }
}

impl<K: Ord + Clone, V: PartialEq> Versions<K, V> {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Hardware may hold `value` for `key` from now on.
    pub fn observe(&mut self, key: &K, value: V) {
        if let Some(versions) = self.entries.get_mut(key) {
            match versions.iter_mut().find(|version| version.value == value) {
                Some(version) => version.doomed = false,
                None => versions.push(Version { value, doomed: false }),
            }
        } else {
            self.entries.insert(key.clone(), vec![Version { value, doomed: false }]);
        }
    }

    /// Hardware may hold `value` for `key` from now on, but found it through something doomed: unless it is held
    /// in its own right, it goes with the next commit.
    pub fn observe_doomed(&mut self, key: &K, value: V) {
        let versions = self.entries.entry(key.clone()).or_default();
        if versions.iter().all(|version| version.value != value) {
            versions.push(Version { value, doomed: true });
            self.doomed = true;
        }
    }

    /// As [`Versions::get`], with whether each version is doomed.
    pub fn marked<'a>(&'a self, key: &K) -> impl Iterator<Item = (&'a V, bool)> + use<'a, K, V> {
        self.entries.get(key).into_iter().flatten().map(|version| (&version.value, version.doomed))
    }

    /// All versions for `key`, oldest first.
    pub fn get<'a>(&'a self, key: &K) -> impl Iterator<Item = &'a V> + use<'a, K, V> {
        self.entries.get(key).into_iter().flatten().map(|version| &version.value)
    }

    /// All keys and versions in a range of keys.
    pub fn range<'a, R: std::ops::RangeBounds<K>>(
        &'a self,
        range: R,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V, R> {
        self.entries.range(range).flat_map(|(key, versions)| versions.iter().map(move |v| (key, &v.value)))
    }

    /// All keys and versions.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.range(..)
    }

    /// An invalidation covers all versions for which `covered` holds; gives how many.
    pub fn doom(&mut self, mut covered: impl FnMut(&K, &V) -> bool) -> usize {
        let mut count = 0;
        for (key, versions) in &mut self.entries {
            for version in versions.iter_mut().filter(|version| covered(key, &version.value)) {
                version.doomed = true;
                count += 1;
            }
        }
        self.doomed |= count != 0;
        count
    }

    /// Drops versions at once, without waiting for a synchronisation; gives how many.
    pub fn remove(&mut self, mut covered: impl FnMut(&K, &V) -> bool) -> usize {
        let before = self.len();
        self.entries.retain(|key, versions| {
            versions.retain(|version| !covered(key, &version.value));
            !versions.is_empty()
        });
        before - self.len()
    }

    /// The synchronisation behind the invalidations completed: what they covered is gone.
    pub fn commit(&mut self) {
        if std::mem::take(&mut self.doomed) {
            self.entries.retain(|_, versions| {
                versions.retain(|version| !version.doomed);
                !versions.is_empty()
            });
        }
    }

    /// Drops everything at once (reset).
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Number of versions held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.values().map(Vec::len).sum()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// One entry of `N` fetch units (64 bits in an STE, 128 in a PASID-table entry) that hardware may have fetched at
/// different times: every combination of what each unit held since the last invalidation is a possible entry.
#[derive(Clone, Debug)]
pub struct Torn<Q, const N: usize> {
    units: [Vec<Version<Q>>; N],
}

impl<Q, const N: usize> Default for Torn<Q, N> {
    fn default() -> Self {
        Self { units: std::array::from_fn(|_| Vec::new()) }
    }
}

impl<Q: Copy + PartialEq, const N: usize> Torn<Q, N> {
    /// An entry that nobody fetched.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The entry as it is in memory now: each unit may be fetched with this value from now on.
    pub fn observe(&mut self, units: &[Q; N]) {
        for (versions, &value) in self.units.iter_mut().zip(units) {
            match versions.iter_mut().find(|version| version.value == value) {
                Some(version) => version.doomed = false,
                None => versions.push(Version { value, doomed: false }),
            }
        }
    }

    /// As [`Torn::observe`], for an entry found through something doomed: values that are not held in their own
    /// right go with the next commit.
    pub fn observe_doomed(&mut self, units: &[Q; N]) {
        for (versions, &value) in self.units.iter_mut().zip(units) {
            if versions.iter().all(|version| version.value != value) {
                versions.push(Version { value, doomed: true });
            }
        }
    }

    /// An invalidation covers the entry.
    pub fn doom(&mut self) {
        self.units.iter_mut().flatten().for_each(|version| version.doomed = true);
    }

    /// The synchronisation behind the invalidation completed; gives whether nothing is left.
    pub fn commit(&mut self) -> bool {
        for versions in &mut self.units {
            versions.retain(|version| !version.doomed);
        }
        self.is_empty()
    }

    /// Whether nobody can hold the entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.units.iter().any(Vec::is_empty)
    }

    /// How many combinations there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.units.iter().fold(1, |product: usize, versions| product.saturating_mul(versions.len()))
    }

    /// The possible entries, oldest versions first, at most `limit`; compare with [`Torn::count`] to see whether
    /// some are missing.
    #[must_use]
    pub fn combinations(&self, limit: usize) -> Vec<[Q; N]> {
        self.marked(limit).into_iter().map(|(units, _)| units).collect()
    }

    /// As [`Torn::combinations`], with whether a doomed value is in the mix.
    #[must_use]
    pub fn marked(&self, limit: usize) -> Vec<([Q; N], bool)> {
        let mut out = Vec::new();
        if self.is_empty() {
            return out;
        }
        let mut at = [0usize; N];
        while out.len() < limit {
            let doomed = (0..N).any(|unit| self.units[unit][at[unit]].doomed);
            out.push((std::array::from_fn(|unit| self.units[unit][at[unit]].value), doomed));
            let mut unit = 0;
            loop {
                if unit == N {
                    return out;
                }
                at[unit] += 1;
                if at[unit] < self.units[unit].len() {
                    break;
                }
                at[unit] = 0;
                unit += 1;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doomed_version_stays_until_the_commit_and_a_refetched_one_survives_it() {
        let mut cache = Versions::new();
        cache.observe(&1, 'a');
        cache.observe(&1, 'b');
        assert_eq!(cache.doom(|_, _| true), 2);
        assert_eq!(cache.get(&1).collect::<String>(), "ab");
        cache.observe(&1, 'b');
        cache.commit();
        assert_eq!(cache.get(&1).collect::<String>(), "b");
        cache.commit();
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn what_is_found_through_something_doomed_goes_with_it() {
        let mut cache = Versions::new();
        cache.observe(&1, 'a');
        cache.observe_doomed(&1, 'a');
        cache.observe_doomed(&1, 'b');
        assert_eq!(cache.marked(&1).map(|(_, doomed)| doomed).collect::<Vec<_>>(), [false, true]);
        cache.commit();
        assert_eq!(cache.get(&1).collect::<String>(), "a");
        let mut entry = Torn::<u8, 2>::new();
        entry.observe(&[1, 2]);
        entry.observe_doomed(&[1, 3]);
        assert_eq!(entry.marked(9), [([1, 2], false), ([1, 3], true)]);
        entry.commit();
        assert_eq!(entry.combinations(9), [[1, 2]]);
    }

    #[test]
    fn every_mix_of_fetch_units_is_possible_until_invalidated() {
        let mut entry = Torn::<u8, 2>::new();
        entry.observe(&[1, 2]);
        entry.observe(&[3, 4]);
        assert_eq!(entry.combinations(9), [[1, 2], [3, 2], [1, 4], [3, 4]]);
        assert_eq!(entry.combinations(3).len(), 3);
        assert_eq!(entry.count(), 4);
        entry.doom();
        entry.observe(&[3, 4]);
        assert_eq!(entry.count(), 4);
        assert!(!entry.commit());
        assert_eq!(entry.combinations(9), [[3, 4]]);
        entry.doom();
        assert!(entry.commit());
        assert_eq!(entry.combinations(9), [[0; 2]; 0]);
    }
}
