//! All runs of something that makes choices.

/// A sequence of choices: those of the script, then the first alternative of each.
///
/// By convention alternative 0 is what memory says now, so an empty script is the fresh run. [`Choices::next`]
/// turns the run just made into the next one in lexical order, until all were made.
#[derive(Clone, Debug, Default)]
pub(super) struct Choices {
    taken: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    /// Chooses one of `bound` alternatives; a single one is no choice and leaves no trace.
    pub(super) fn choose(&mut self, bound: usize) -> usize {
        if bound < 2 {
            return 0;
        }
        if self.at == self.taken.len() {
            self.taken.push((0, bound));
        }
        let (choice, _) = self.taken[self.at];
        self.at += 1;
        choice.min(bound - 1)
    }

    /// The script of the next run, or false after the last one.
    pub(super) fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, bound)) = self.taken.pop() {
            if choice + 1 < bound {
                self.taken.push((choice + 1, bound));
                return true;
            }
        }
        false
    }

    /// The same run once more.
    pub(super) fn rewind(&mut self) {
        self.at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_comes_once_and_the_fresh_one_first() {
        let mut choices = Choices::default();
        let mut runs = Vec::new();
        loop {
            let first = choices.choose(2);
            let second = if first == 0 { choices.choose(3) } else { choices.choose(1) };
            runs.push((first, second));
            if !choices.next() {
                break;
            }
        }
        assert_eq!(runs, [(0, 0), (0, 1), (0, 2), (1, 0)]);
    }
}
