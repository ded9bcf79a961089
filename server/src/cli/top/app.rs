//! What `ponder top` knows and what its keys do. It has no terminal and no server.

use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::rates::Rates;
use super::snapshot::{Lane, Snapshot};

/// Points of a history: as many as a wide screen has columns.
const HISTORY: usize = 300;

/// The program's state.
#[derive(Default)]
pub struct App {
    /// Where the server is.
    pub url: String,
    /// The last snapshot that came.
    pub latest: Option<Snapshot>,
    /// What happened before it.
    pub rates: Rates,
    /// Why the server does not answer, if it does not.
    pub away: Option<String>,
    /// Nothing moves until it is taken back.
    pub paused: bool,
    /// The sequence whose details are shown.
    pub details: bool,
    /// Tokens per second, the newest last.
    pub tokens: VecDeque<u64>,
    /// Share of right guesses in percent, the newest last; none where nothing was guessed.
    pub acceptance: VecDeque<Option<u64>>,
    /// The chosen sequence, and where it last stood.
    selected: Option<(u64, u64)>,
    row: usize,
}

/// What a key asks of the program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// To go on.
    Go,
    /// To end.
    Quit,
}

impl App {
    /// One that has seen nothing.
    pub fn new(url: &str) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// A look at the server.
    pub fn looked(&mut self, look: Result<Snapshot, String>) {
        if self.paused {
            return;
        }
        let snapshot = match look {
            Ok(snapshot) => snapshot,
            Err(why) => {
                self.away = Some(why);
                return;
            }
        };
        self.away = None;
        self.rates = self.latest.as_ref().map_or(Rates::default(), |old| Rates::between(old, &snapshot));
        if let Some(tokens) = self.rates.tokens {
            push(&mut self.tokens, tokens.round() as u64);
            push(&mut self.acceptance, self.rates.acceptance.map(|a| (a * 100.0).round() as u64));
        }
        self.latest = Some(snapshot);
        // Without details the choice stays at its place; with them it stays with its sequence, even if that ends.
        match self.lanes().iter().position(|l| Some(l.key) == self.selected) {
            Some(row) => self.row = row,
            None if self.details => {}
            None => self.select(self.row),
        }
    }

    /// A key.
    pub fn key(&mut self, key: KeyEvent) -> Next {
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Quit,
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Esc if self.details => self.details = false,
            KeyCode::Esc => return Next::Quit,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Up | KeyCode::Char('k') => self.select(self.row.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(self.row + 1),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            KeyCode::Enter => self.details = !self.details && self.selected.is_some(),
            _ => {}
        }
        Next::Go
    }

    fn lanes(&self) -> &[Lane] {
        self.latest.as_ref().map_or(&[], |s| &s.lanes)
    }

    fn select(&mut self, row: usize) {
        self.row = row.min(self.lanes().len().saturating_sub(1));
        self.selected = self.lanes().get(self.row).map(|l| l.key);
        self.details &= self.selected.is_some();
    }

    /// The row of the chosen sequence, if there is one.
    pub fn selected_row(&self) -> Option<usize> {
        self.lanes().iter().position(|l| Some(l.key) == self.selected)
    }

    /// The chosen sequence; `None` if it has ended.
    pub fn selected_lane(&self) -> Option<&Lane> {
        self.selected_row().map(|row| &self.lanes()[row])
    }

    /// Its key, whether or not it still runs.
    pub fn selected_key(&self) -> Option<(u64, u64)> {
        self.selected
    }
}

fn push<T>(history: &mut VecDeque<T>, value: T) {
    history.push_back(value);
    while history.len() > HISTORY {
        history.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::recorded;
    use super::*;

    fn press(app: &mut App, code: KeyCode) -> Next {
        app.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn keys() {
        let mut app = App::new("");
        for code in [KeyCode::Up, KeyCode::Down, KeyCode::Enter, KeyCode::End, KeyCode::Char('x')] {
            assert_eq!(press(&mut app, code), Next::Go, "nothing was seen yet");
        }
        assert!(!app.details);
        app.looked(Ok(recorded()));
        assert_eq!(app.selected_row(), Some(0));
        press(&mut app, KeyCode::Down);
        press(&mut app, KeyCode::Down);
        press(&mut app, KeyCode::Up);
        assert_eq!(app.selected_row(), Some(1));
        for _ in 0..9 {
            press(&mut app, KeyCode::Down);
        }
        assert_eq!(app.selected_row(), Some(4), "the last one");
        press(&mut app, KeyCode::Enter);
        assert!(app.details);
        assert_eq!((press(&mut app, KeyCode::Esc), app.details), (Next::Go, false));
        assert_eq!(press(&mut app, KeyCode::Esc), Next::Quit);
        assert_eq!(press(&mut app, KeyCode::Char('q')), Next::Quit);
        assert_eq!(app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Next::Quit);
        assert_eq!(press(&mut app, KeyCode::Char('c')), Next::Go);
    }

    #[test]
    fn the_choice_follows_its_sequence() {
        let mut app = App::new("");
        app.looked(Ok(recorded()));
        press(&mut app, KeyCode::Down);
        let chosen = app.selected_key();
        let mut fewer = recorded();
        fewer.lanes.remove(0);
        app.looked(Ok(fewer.clone()));
        assert_eq!((app.selected_row(), app.selected_key()), (Some(0), chosen));
        press(&mut app, KeyCode::Enter);
        fewer.lanes.remove(0);
        app.looked(Ok(fewer.clone()));
        assert!(app.details && app.selected_lane().is_none() && app.selected_key() == chosen, "its end is shown");
        press(&mut app, KeyCode::Esc);
        app.looked(Ok(fewer));
        assert_eq!(app.selected_row(), Some(0));
        app.looked(Ok(Snapshot::default()));
        assert_eq!(app.selected_lane(), None);
    }

    #[test]
    fn a_server_goes_and_comes_back() {
        let mut app = App::new("");
        app.looked(Err("refused".into()));
        assert!(app.latest.is_none() && app.away.is_some());
        app.looked(Ok(recorded()));
        assert!(app.latest.is_some() && app.away.is_none());
        app.looked(Err("refused".into()));
        assert!(app.latest.is_some() && app.away.is_some(), "what was seen last stays");
        press(&mut app, KeyCode::Char('p'));
        app.looked(Ok(recorded()));
        assert!(app.paused && app.away.is_some());
        press(&mut app, KeyCode::Char('p'));
        let mut later = recorded();
        later.now_ms = later.now_ms.map(|t| t + 1000);
        app.looked(Ok(later));
        assert_eq!((app.away.as_deref(), app.tokens.len(), app.acceptance.back()), (None, 1, Some(&None)));
    }
}
