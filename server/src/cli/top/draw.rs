//! The screen. Phases differ in their words and glyphs too, not in colour alone.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, LineGauge, Paragraph, Row, Sparkline, Table, TableState};

use super::app::App;
use super::rates::ActorRates;
use super::snapshot::{Lane, Phase, Snapshot};
use super::words::{LATENCIES, NONE, bar, count, millis, percent, quantiles, rate, time};

/// Colours, or none of them where <https://no-color.org> says so.
#[derive(Clone, Copy)]
pub struct Palette {
    /// Whether there are any.
    pub colour: bool,
}

impl Palette {
    fn fg(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
    fn phase(self, phase: Phase) -> Style {
        self.fg(match phase {
            Phase::Queued | Phase::Other => Color::DarkGray,
            Phase::Preempted => Color::Red,
            Phase::Prefill => Color::Blue,
            Phase::Thinking => Color::Magenta,
            Phase::Answer => Color::Green,
            Phase::ToolCall => Color::Cyan,
        })
    }
}

/// Draws everything.
pub fn draw(frame: &mut Frame, app: &App, palette: Palette) {
    let nothing = Snapshot::default();
    let s = app.latest.as_ref().unwrap_or(&nothing);
    let actors = s.actors.len() as u16 + 3;
    let rows = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(7),
        Constraint::Min(4),
        Constraint::Length(actors),
        Constraint::Length(1),
    ];
    let [head, kv, plots, lanes, actor_rows, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(title(app, s, palette), head);
    pool(frame, kv, s, palette);
    let [tokens, acceptance, latency] =
        Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2), Constraint::Length(46)]).areas(plots);
    let speed = format!(" {} tokens/s ", rate(app.rates.tokens));
    let history = newest(app.tokens.iter().copied().map(Some), tokens);
    frame.render_widget(plot(speed, history, palette.fg(Color::Green)), tokens);
    let right = format!(" acceptance {} ", percent(app.rates.acceptance));
    let history = newest(app.acceptance.iter().copied(), acceptance);
    frame.render_widget(plot(right, history, palette.fg(Color::Cyan)).max(100), acceptance);
    frame.render_widget(latencies(s), latency);
    sequences(frame, lanes, app, s, palette);
    frame.render_widget(actor_table(s, &app.rates.actors), actor_rows);
    frame.render_widget(Line::from(" q quit   p pause   ↑↓ choose   enter details").style(dim()), foot);
    if app.details {
        details(frame, app, palette);
    }
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn title<'a>(app: &'a App, s: &'a Snapshot, palette: Palette) -> Line<'a> {
    let (running, waiting) = s.counts();
    let mut spans = vec![Span::styled(" ponder top ", Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED))];
    if let Some(why) = &app.away {
        spans.push(Span::styled(format!(" away, trying again: {why}"), palette.fg(Color::Red)));
        return Line::from(spans);
    }
    if app.latest.is_none() {
        spans.push(Span::raw(format!(" {} …", app.url)));
        return Line::from(spans);
    }
    for (set, word) in [(app.paused, " paused "), (s.draining, " draining ")] {
        if set {
            spans.push(Span::styled(word, palette.fg(Color::Yellow).add_modifier(Modifier::REVERSED)));
        }
    }
    let model = s.model.as_deref().unwrap_or(NONE);
    spans.push(Span::raw(format!(" {model}  up {}  step {}  ", millis(s.now_ms), count(s.step))));
    spans.push(Span::raw(format!("{running}/{} running  {waiting} waiting  ", count(s.seats))));
    spans.push(Span::raw(format!("device {} busy  {}", percent(app.rates.device), app.url)));
    Line::from(spans)
}

fn pool(frame: &mut Frame, area: Rect, s: &Snapshot, palette: Palette) {
    let Some((total, free)) = s.blocks else {
        frame.render_widget(Line::from(format!(" KV {NONE}")), area);
        return;
    };
    let held = total.saturating_sub(free);
    let share = if total == 0 { 0.0 } else { held as f64 / total as f64 };
    let cached = s.cached_blocks.map_or(String::new(), |c| format!(", {c} cached"));
    let label = format!(" KV {held}/{total} blocks{cached} {} ", percent(Some(share)));
    let style = palette.fg(if share > 0.9 { Color::Red } else { Color::Blue });
    let gauge = LineGauge::default().filled_symbol("█").unfilled_symbol("░").unfilled_style(dim());
    frame.render_widget(gauge.ratio(share.clamp(0.0, 1.0)).label(label).filled_style(style), area);
}

/// As many of the newest values as the plot has columns.
fn newest(values: impl ExactSizeIterator<Item = Option<u64>>, area: Rect) -> Vec<Option<u64>> {
    let columns = usize::from(area.width.saturating_sub(2));
    let skipped = values.len().saturating_sub(columns);
    values.skip(skipped).collect()
}

fn plot<'a>(title: String, data: Vec<Option<u64>>, style: Style) -> Sparkline<'a> {
    Sparkline::default().block(Block::bordered().title(title)).data(data).style(style)
}

fn latencies<'a>(s: &Snapshot) -> Table<'a> {
    let row = |(name, metric): (&'static str, &str)| {
        let cells = quantiles(s, metric).into_iter().map(|t| format!("{t:>8}"));
        Row::new([name.to_string()].into_iter().chain(cells))
    };
    let widths = [Constraint::Length(13), Constraint::Length(8), Constraint::Length(8), Constraint::Length(8)];
    let header = Row::new(["", "     p50", "     p90", "     p99"]).style(dim());
    Table::new(LATENCIES.map(row), widths).header(header).block(Block::bordered().title(" latency since the start "))
}

fn sequences(frame: &mut Frame, area: Rect, app: &App, s: &Snapshot, palette: Palette) {
    const FIXED: u16 = 9 + 10 + 8 + 16;
    let width = usize::from(area.width.saturating_sub(FIXED + 4 + 2));
    let row = |lane: &Lane| {
        let style = palette.phase(lane.phase);
        let [prompt, thinking, answer, rest] = bar(lane, width);
        let colours =
            [palette.phase(Phase::Prefill), palette.phase(Phase::Thinking), palette.phase(Phase::Answer), dim()];
        let pieces = [prompt, thinking, answer, rest].into_iter().zip(colours);
        Row::new([
            Line::raw(lane.short()),
            Line::styled(lane.phase.name(), style),
            Line::raw(format!("{:>8}", millis(lane.age_ms))),
            Line::from(pieces.map(|(text, style)| Span::styled(text, style)).collect::<Vec<_>>()),
            Line::raw(format!("{:>7}/{}", count(lane.output), count(lane.max))),
        ])
    };
    let widths = [
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Fill(1),
        Constraint::Length(16),
    ];
    let header =
        Row::new(["request", "phase", "     age", "░ prompt ▒ thinking █ answer", " tokens/most"]).style(dim());
    let title = format!(" {} sequences ", s.lanes.len());
    let chosen = Style::new().add_modifier(Modifier::REVERSED);
    let table = Table::new(s.lanes.iter().map(row), widths).header(header).row_highlight_style(chosen);
    let mut state = TableState::default().with_selected(app.selected_row());
    frame.render_stateful_widget(table.block(Block::bordered().title(title)), area, &mut state);
}

fn actor_table<'a>(s: &'a Snapshot, rates: &[ActorRates]) -> Table<'a> {
    let unknown = ActorRates::default();
    let row = |(i, actor): (usize, &'a super::snapshot::Actor)| {
        let r = rates.get(i).unwrap_or(&unknown);
        let p99 = s.metrics.quantile("ponder:actor_queue_seconds", Some(("actor", &actor.name)), 0.99);
        Row::new([
            actor.name.clone(),
            format!("{:>10}", rate(r.messages)),
            format!("{:>10}", time(r.queue_us.map(|us| us / 1e6))),
            format!("{:>10}", time(p99)),
            format!("{:>6}", percent(r.busy)),
        ])
    };
    let widths = [14, 10, 10, 10, 6].map(Constraint::Length);
    let header = Row::new(["", "messages/s", "queue mean", " queue p99", "  busy"]).style(dim());
    Table::new(s.actors.iter().enumerate().map(row), widths).header(header).block(Block::bordered().title(" actors "))
}

fn details(frame: &mut Frame, app: &App, palette: Palette) {
    let lines: Vec<Line> = match app.selected_lane() {
        None => vec![Line::raw("It has ended.")],
        Some(l) => facts(l)
            .into_iter()
            .map(|(name, value)| {
                let style = if name == "phase" { palette.phase(l.phase) } else { Style::new() };
                Line::from(vec![Span::styled(format!("{name:<15}"), dim()), Span::styled(value, style)])
            })
            .collect(),
    };
    let (request, choice) = app.selected_key().unwrap_or_default();
    let screen = frame.area();
    let (width, height) = (screen.width.min(64), screen.height.min(lines.len() as u16 + 2));
    let area = Rect::new((screen.width - width) / 2, (screen.height - height) / 2, width, height);
    let block = Block::bordered().title(format!(" request {request}, choice {choice} ")).title_bottom(" esc closes ");
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn facts(l: &Lane) -> Vec<(&'static str, String)> {
    let share = l.accepted.zip(l.drafted.filter(|n| *n > 0)).map(|(a, d)| a as f64 / d as f64);
    vec![
        ("id", l.id.clone().unwrap_or(NONE.into())),
        ("phase", l.phase.name().into()),
        ("age", millis(l.age_ms)),
        ("prompt", format!("{} tokens", count(l.prompt))),
        ("output", format!("{} of {} tokens", count(l.output), count(l.max))),
        ("thinking", format!("{} tokens, budget {}", count(l.thinking), count(l.budget))),
        ("cached", format!("{} tokens in {} blocks", count(l.cached), count(l.blocks))),
        ("recomputed", format!("{} tokens", count(l.recomputed))),
        ("guessed", format!("{}, right {} ({})", count(l.drafted), count(l.accepted), percent(share))),
    ]
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::super::snapshot::tests::recorded;
    use super::*;

    fn buffer(app: &App, colour: bool, (width, height): (u16, u16)) -> ratatui::buffer::Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, app, Palette { colour })).unwrap();
        terminal.backend().buffer().clone()
    }

    fn screen(app: &App, size: (u16, u16)) -> Vec<String> {
        let buffer = buffer(app, true, size);
        let row = |y| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..size.1).map(row).collect()
    }

    #[track_caller]
    fn shows(screen: &[String], parts: &[&str]) {
        for part in parts {
            assert!(screen.iter().any(|l| l.contains(part)), "{part:?} is not in\n{}", screen.join("\n"));
        }
    }

    fn watching() -> App {
        let mut app = App::new("http://there:8000");
        app.looked(Ok(recorded()));
        let mut later = recorded();
        later.now_ms = later.now_ms.map(|t| t + 500);
        later.lanes[0].output = later.lanes[0].output.map(|n| n + 40);
        later.lanes[0].drafted = Some(140);
        later.lanes[0].accepted = Some(105);
        app.looked(Ok(later));
        app
    }

    #[test]
    fn everything_is_there() {
        let seen = screen(&watching(), (110, 34));
        shows(&seen, &["bundled", "3/4 running", "2 waiting", "80 tokens/s", "acceptance 75%", "KV ", "blocks"]);
        shows(&seen, &["5 sequences", "thinking", "answer", "prefill", "preempted", "queued", "697/1500"]);
        shows(&seen, &["scheduler", "streamer", "queue p99", "first token", "p99", "q quit", "█", "▒", "░"]);
    }

    #[test]
    fn phases_have_colours_unless_nobody_wants_them() {
        let coloured = |colour| {
            let buffer = buffer(&watching(), colour, (110, 34));
            buffer
                .content
                .iter()
                .filter(|c| c.fg != Color::Reset)
                .map(|c| c.fg)
                .collect::<std::collections::HashSet<_>>()
        };
        let seen = coloured(true);
        for colour in [Color::Magenta, Color::Green, Color::Blue, Color::Red, Color::DarkGray] {
            assert!(seen.contains(&colour), "{colour} in {seen:?}");
        }
        assert_eq!(coloured(false).len(), 0);
    }

    #[test]
    fn details_of_a_request() {
        let mut app = watching();
        app.key(KeyEvent::new(KeyCode::Down, KeyModifiers::NONE));
        app.key(KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE));
        let id = recorded().lanes[1].id.clone().unwrap();
        let seen = screen(&app, (110, 34));
        shows(&seen, &["request 6, choice 0", &id, "299 tokens, budget 512", "esc closes"]);
        let mut ended = recorded();
        ended.lanes.clear();
        app.looked(Ok(ended));
        shows(&screen(&app, (110, 34)), &["It has ended."]);
    }

    #[test]
    fn states_are_said() {
        let mut app = App::new("http://there:8000");
        shows(&screen(&app, (80, 24)), &["http://there:8000 …", "KV –"]);
        app.looked(Err("http://there:8000/metrics: connection refused".into()));
        shows(&screen(&app, (80, 24)), &["away, trying again: http://there:8000/metrics"]);
        app.looked(Ok(recorded()));
        app.key(KeyEvent::new(KeyCode::Char('p'), KeyModifiers::NONE));
        shows(&screen(&app, (80, 24)), &["paused"]);
    }

    #[test]
    fn no_size_is_too_small() {
        let mut app = watching();
        for details in [false, true] {
            app.details = details;
            for size in [(1, 1), (2, 40), (200, 2), (20, 10), (60, 15), (250, 80)] {
                screen(&app, size);
            }
        }
    }
}
