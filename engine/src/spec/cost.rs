//! Measured times of steps as tables: learnt online, linear between what was seen.

use std::collections::BTreeMap;

/// A mean, decayed, of so many observations.
#[derive(Clone, Copy, Debug)]
struct Mean {
    /// Of the counts.
    count: f64,
    us: f64,
    seen: u32,
}

/// Mean times in microseconds by a count (rows of a step, passes of a draft), decayed. Counts below 8 are apart, larger
/// ones in quarters of an octave: of many noisy times, each seen a few times, the luckiest would be chosen.
#[derive(Clone, Debug, Default)]
pub struct CostTable {
    by_count: BTreeMap<usize, Mean>,
}

/// Observations of a count that may have been disturbed together.
const FIRST: u32 = 4;

impl CostTable {
    /// Something with this count took `us`; `decay` is the weight of the observation, once there are many.
    pub fn observe(&mut self, count: usize, us: f64, decay: f64) {
        let mean = self.by_count.entry(Self::class(count)).or_insert(Mean { count: count as f64, us, seen: 0 });
        mean.seen = mean.seen.saturating_add(1);
        // A step that was disturbed (a busy machine, a first compilation) is an outlier upwards; one of the first few
        // that is much faster says that those were disturbed. Later ones count alike, or a machine of two speeds would
        // seem to have the faster one only.
        let decay = if us < 0.7 * mean.us && mean.seen <= FIRST { 0.5 } else { decay.max(1.0 / f64::from(mean.seen)) };
        mean.us += decay * (us.min(2.0 * mean.us) - mean.us);
        mean.count += decay * (count as f64 - mean.count);
    }
    /// The smallest of the counts that are seen as one.
    fn class(count: usize) -> usize {
        let low = count.max(1).ilog2().saturating_sub(2);
        count >> low << low
    }
    /// Whether this count was seen.
    pub fn knows(&self, count: usize) -> bool {
        self.by_count.contains_key(&Self::class(count))
    }
    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.by_count.is_empty()
    }
    /// The expected time. Before anything is known it is 1, whatever the count: so the first guesses are tried.
    pub fn at(&self, count: usize) -> f64 {
        let (class, count) = (Self::class(count), count as f64);
        // Means of neighbouring classes are in the order of their counts; that of the count's own may be on either side.
        let mut below = self.by_count.range(..=class).rev().map(|(_, mean)| mean).filter(|mean| mean.count <= count);
        let above = self.by_count.range(class..).map(|(_, mean)| mean).find(|mean| mean.count >= count);
        match (below.next(), above) {
            (Some(a), Some(b)) if a.count < b.count => a.us + (b.us - a.us) * (count - a.count) / (b.count - a.count),
            (_, Some(mean)) => mean.us,
            (Some(last), None) => {
                // Beyond what was seen: the last slope, at least flat.
                let slope = below.next().map_or(0.0, |mean| (last.us - mean.us) / (last.count - mean.count));
                last.us + slope.max(0.0) * (count - last.count)
            }
            (None, None) => 1.0,
        }
    }
}

/// Tables by a size that grows slowly (context, sequences), one per power of two. A size that is new begins
/// with what its neighbour has learnt.
#[derive(Clone, Debug, Default)]
pub struct CostTables {
    by_size: BTreeMap<u32, CostTable>,
}

impl CostTables {
    fn key(size: usize) -> u32 {
        usize::BITS - size.leading_zeros()
    }
    /// The table of that size, made if it is missing.
    pub fn table(&mut self, size: usize) -> &mut CostTable {
        let key = Self::key(size);
        if !self.by_size.contains_key(&key) {
            let nearest = self.by_size.iter().min_by_key(|(k, _)| k.abs_diff(key));
            let start = nearest.map(|(_, table)| table.clone()).unwrap_or_default();
            self.by_size.insert(key, start);
        }
        self.by_size.get_mut(&key).expect("made above")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_and_beyond_what_was_seen() {
        let mut table = CostTable::default();
        assert_eq!(table.at(7), 1.0);
        table.observe(2, 100.0, 0.1);
        table.observe(6, 140.0, 0.1);
        assert_eq!([1, 2, 4, 6, 8].map(|c| table.at(c)), [100.0, 100.0, 120.0, 140.0, 160.0]);
        table.observe(2, 1e6, 0.1);
        assert!(table.at(2) <= 150.0, "an outlier counts little");
        (0..40).for_each(|_| table.observe(2, 100.0, 0.1));
        table.observe(2, 1e6, 0.1);
        assert!(table.at(2) < 111.0, "and less where more was seen");
        assert!(table.knows(6) && !table.knows(4));
        table.observe(64, 900.0, 0.1);
        table.observe(68, 1100.0, 0.1);
        assert!(table.knows(79) && !table.knows(80));
        assert_eq!(table.at(66), 1000.0, "the mean of both");
    }

    #[test]
    fn a_machine_of_two_speeds_is_known_by_its_mean() {
        let mut table = CostTable::default();
        (0..400).for_each(|i| table.observe(4, if i % 2 == 0 { 100.0 } else { 60.0 }, 0.05));
        assert!((75.0..85.0).contains(&table.at(4)), "{}", table.at(4));
        // The first was disturbed, which the next few show.
        let mut table = CostTable::default();
        [1000.0, 100.0, 100.0, 100.0].iter().for_each(|us| table.observe(4, *us, 0.05));
        assert!(table.at(4) < 250.0, "{}", table.at(4));
    }

    #[test]
    fn a_new_size_begins_where_its_neighbour_is() {
        let mut tables = CostTables::default();
        tables.table(100).observe(1, 50.0, 0.1);
        assert_eq!(tables.table(4000).at(1), 50.0);
        tables.table(4000).observe(1, 90.0, 0.5);
        assert_eq!((tables.table(120).at(1), tables.table(4095).at(1)), (50.0, 70.0));
    }
}
