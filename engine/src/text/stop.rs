//! Stop strings: the text of an answer ends before the first one, wherever token borders fall.

/// Watches a growing text for stop strings and holds back what could be the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Watches for any of `stops`.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes new text; returns what is safe to show, and the stop string if it is complete.
    pub fn push(&mut self, text: &str) -> (String, Option<String>) {
        if self.stops.is_empty() {
            return (text.to_string(), None);
        }
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|s| self.held.find(s.as_str()).map(|at| (at, s))).min_by_key(|f| f.0);
        if let Some((at, stop)) = first {
            let (stop, shown) = (stop.clone(), self.held[..at].to_string());
            self.held.clear();
            return (shown, Some(stop));
        }
        let keep = self.stops.iter().map(|s| partial_end(&self.held, s)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, kept), None)
    }

    /// The text ended otherwise: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest proper beginning of `stop` that `text` ends with.
fn partial_end(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(i, _)| i).skip(1);
    lengths.filter(|&n| text.as_bytes().ends_with(&stop.as_bytes()[..n])).last().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to cut a text in three shows the same text and finds the same end.
    #[test]
    fn cuts_do_not_matter() {
        let stops = vec!["END".to_string(), "</s>".into(), "ää".into()];
        for (text, want, stop) in [
            ("some textEND more", "some text", Some("END")),
            ("EN EN ENEND", "EN EN EN", Some("END")),
            ("a < b </ c </s", "a < b </ c </s", None),
            ("xäy ää", "xäy ", Some("ää")),
        ] {
            let cuts: Vec<usize> = (0..=text.len()).filter(|i| text.is_char_boundary(*i)).collect();
            for &a in &cuts {
                for &b in cuts.iter().filter(|b| **b >= a) {
                    let mut watch = StopStrings::new(stops.clone());
                    let (mut shown, mut found) = (String::new(), None);
                    for part in [&text[..a], &text[a..b], &text[b..]] {
                        if found.is_none() {
                            let (more, stop) = watch.push(part);
                            shown += &more;
                            found = stop;
                        }
                    }
                    shown += &watch.finish();
                    assert_eq!((shown.as_str(), found.as_deref()), (want, stop), "cut at {a} and {b}");
                }
            }
        }
    }
}
