//! How `matapa top` looks: what is known, drawn into a frame.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as TextLine, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState};

use super::state::{HISTORY, Line, Top};
use crate::api::types::{AdminState, BackendStatus, ServiceState, Status};
use crate::cli::table::{Meaning, admin, clean, health, human_bytes};
use crate::health::Health;

/// Lines of the events, with their title.
const EVENTS_HEIGHT: u16 = 7;
/// Below that, they are left out.
const ROOM_FOR_EVENTS: u16 = 16;

const HELP: &[(&str, &str)] = &[
    ("up, down, k, j", "choose a line; also Page Up, Page Down, Home, End"),
    ("d", "drain the backend: no new flows, old ones finish"),
    ("e", "enable it"),
    ("x", "disable it: as drained, and no more checks"),
    ("s", "sort backends: configuration, flows, packets, health"),
    ("/", "show only names with a text; Enter keeps it, Esc ends it"),
    ("r", "ask again, now"),
    ("q, Esc", "quit"),
];

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, top: &Top) {
    let area = frame.area();
    let events = if area.height >= ROOM_FOR_EVENTS { EVENTS_HEIGHT } else { 0 };
    let [head, list, below, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(events),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(headline(top)), head);
    draw_list(frame, top, list);
    if events > 0 {
        draw_events(frame, top, below);
    }
    frame.render_widget(Paragraph::new(footline(top)), foot);
    if top.help {
        draw_help(frame, area);
    }
}

fn headline(top: &Top) -> TextLine<'static> {
    let Some(status) = &top.status else { return TextLine::from("matapa") };
    let backends: Vec<&BackendStatus> =
        status.services.iter().flat_map(|service| &service.backends).collect();
    let up = backends.iter().filter(|backend| backend.health == Health::Up).count();
    let flows: u64 = status.services.iter().map(|service| service.flows).sum();
    let only = if top.filter.is_empty() && !top.typing {
        String::new()
    } else {
        format!("   only \"{}{}\"", clean(&top.filter), if top.typing { "_" } else { "" })
    };
    let text = format!(
        " {}, up {}{only}   {} services   {up} of {} backends up   {flows} flows   sorted by {}",
        clean(&status.version),
        uptime(status),
        status.services.len(),
        backends.len(),
        top.sort.name(),
    );
    let bold = Style::new().add_modifier(Modifier::BOLD);
    TextLine::from(vec![Span::styled("matapa", bold), Span::raw(text)])
}

fn uptime(status: &Status) -> String {
    let seconds = status.uptime_seconds;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match days {
        0 => format!("{hours}:{minutes:02}:{:02}", seconds % 60),
        days => format!("{days}d {hours}:{minutes:02}"),
    }
}

fn draw_list(frame: &mut Frame<'_>, top: &Top, area: Rect) {
    let lines = top.lines();
    if lines.is_empty() {
        let text = match &top.status {
            Some(status) if status.services.is_empty() => "no services are configured",
            Some(_) => "no name contains this text",
            None => "waiting for the daemon",
        };
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let rows: Vec<Row<'_>> = lines.iter().map(|line| row(top, line)).collect();
    let right = |text: &'static str| Cell::from(TextLine::from(text).alignment(Alignment::Right));
    let head = Row::new([
        Cell::from("Name"),
        Cell::from("Health"),
        Cell::from("Admin"),
        right("Flows"),
        right("Packets/s"),
        right("Bytes/s"),
        Cell::from("Packets/s so far"),
        Cell::from("Error"),
    ])
    .style(Style::new().add_modifier(Modifier::BOLD));
    let widths = [
        Constraint::Length(22),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(11),
        Constraint::Length(u16::try_from(HISTORY).unwrap_or(u16::MAX)),
        Constraint::Fill(1),
    ];
    let table = Table::new(rows, widths)
        .header(head)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(top.position());
    frame.render_stateful_widget(table, area, &mut state);
}

fn row<'a>(top: &'a Top, line: &Line<'a>) -> Row<'a> {
    let traffic = top.traffic(line);
    let packets = traffic.and_then(|traffic| traffic.packet_rate).map(|rate| format!("{rate:.0}"));
    let bytes = traffic.and_then(|traffic| traffic.byte_rate).map(|rate| human_bytes(rate as u64));
    let history = traffic.map(|traffic| sparkline(traffic.history.iter().copied())).unwrap_or_default();
    let right = |text: String| Cell::from(TextLine::from(text).alignment(Alignment::Right));
    let word = |(word, meaning): (&'static str, Meaning)| Cell::from(word).style(color(meaning));
    let (name, state, wanted, flows, error) = match line {
        Line::Service(service) => {
            let state = match service.state {
                ServiceState::Active => ("active", Meaning::Good),
                ServiceState::Down => ("down", Meaning::Bad),
                ServiceState::Disabled => ("disabled", Meaning::Notice),
            };
            let name = clean(&service.name).into_owned();
            (name, word(state), Cell::from(""), service.flows, String::new())
        }
        Line::Backend(_, backend) => {
            let wanted = match backend.admin {
                AdminState::Draining if backend.leaving => word(("leaving", Meaning::Notice)),
                AdminState::Enabled if backend.standby => word(("standby", Meaning::Notice)),
                AdminState::Enabled if backend.full => word(("full", Meaning::Notice)),
                AdminState::Enabled => Cell::from(admin(backend.admin).0),
                other => word(admin(other)),
            };
            let error = backend.last_error.as_deref().or(backend.notice.as_deref()).unwrap_or_default();
            let suspect = if backend.suspect { "no new flows: did not answer " } else { "" };
            let name = format!("  {}", clean(&backend.name));
            (name, word(health(backend.health)), wanted, backend.flows, format!("{suspect}{}", clean(error)))
        }
    };
    let row = Row::new([
        Cell::from(name),
        state,
        wanted,
        right(flows.to_string()),
        right(packets.unwrap_or_default()),
        right(bytes.unwrap_or_default()),
        Cell::from(history),
        Cell::from(error),
    ]);
    match line {
        Line::Service(_) => row.style(Style::new().add_modifier(Modifier::BOLD)),
        Line::Backend(..) => row,
    }
}

const fn color(meaning: Meaning) -> Style {
    Style::new().fg(match meaning {
        Meaning::Good => Color::Green,
        Meaning::Bad => Color::Red,
        Meaning::Notice => Color::Yellow,
    })
}

/// One bar for each value, the highest as high as the line; nothing at all is a blank.
fn sparkline(values: impl Iterator<Item = f64> + Clone) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.clone().fold(0.0, f64::max);
    let bar = |value: f64| {
        if value <= 0.0 || most <= 0.0 {
            return ' ';
        }
        let index = (value / most * (BARS.len() - 1) as f64).round() as usize;
        BARS.get(index).copied().unwrap_or('█')
    };
    values.map(bar).collect()
}

fn draw_events(frame: &mut Frame<'_>, top: &Top, area: Rect) {
    let room = usize::from(area.height.saturating_sub(1));
    let skipped = top.events.len().saturating_sub(room);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut lines = vec![TextLine::styled("Events", bold)];
    if top.events.is_empty() {
        lines.push(TextLine::from("none since this began"));
    }
    lines.extend(top.events.iter().skip(skipped).map(|event| TextLine::from(clean(event).into_owned())));
    frame.render_widget(Paragraph::new(lines), area);
}

fn footline(top: &Top) -> TextLine<'static> {
    match (&top.notice, &top.unreachable) {
        (Some(notice), _) => {
            let meaning = if notice.bad { Meaning::Bad } else { Meaning::Good };
            TextLine::styled(clean(&notice.text).into_owned(), color(meaning))
        }
        (None, Some(text)) => TextLine::styled(clean(text).into_owned(), color(Meaning::Bad)),
        (None, None) if top.typing => TextLine::from("type a part of a name; Enter keeps it, Esc ends it"),
        (None, None) => {
            TextLine::from("d drain  e enable  x disable  s sort  / filter  r refresh  h help  q quit")
        }
    }
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let height = u16::try_from(HELP.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let width = 78.min(area.width);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let lines: Vec<TextLine<'_>> =
        HELP.iter().map(|(keys, does)| TextLine::from(format!(" {keys:<15} {does}"))).collect();
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" Keys ")), place);
}

#[cfg(test)]
mod tests {
    use super::sparkline;

    #[test]
    fn bars_are_as_high_as_their_share() {
        assert_eq!(sparkline([0.0, 1.0, 50.0, 100.0].into_iter()), " ▁▅█");
        assert_eq!(sparkline([0.0, 0.0].into_iter()), "  ");
        assert_eq!(sparkline([].into_iter()), "");
    }
}
