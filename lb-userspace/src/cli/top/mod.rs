//! `matapa top`: services, backends, their traffic and events, on a terminal, as they are now.
//!
//! [`state`] is what is known and what keys do, [`view`] how it looks; both are pure. Here are the terminal, the clock
//! and the questions to the daemon.

pub mod state;
pub mod view;

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use crossterm::event::{Event as TerminalEvent, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use self::state::{Command, Top};
use crate::api::client::{Client, ClientError};
use crate::api::types::{AdminState, Event, Status};
use crate::cli::args::TopArgs;
use crate::cli::exit::Failure;
use crate::cli::monitor::event_line;
use crate::cli::table::admin;

/// Before events are asked for again from a daemon that went away.
const AGAIN: Duration = Duration::from_secs(1);

/// What comes to the screen besides keys.
#[derive(Debug)]
enum News {
    Status(Result<Status, ClientError>),
    Event(String),
    Done(Result<String, ClientError>),
}

/// The terminal while it is ours. Given back when dropped, and before a panic is printed.
#[derive(Debug)]
pub struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// When standard output is none, or it cannot be used.
    pub fn enter() -> Result<Self, Failure> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(Failure::failed(
                "matapa top needs a terminal, and standard input or output is none; `matapa show --watch` prints to \
                 anything, `matapa show --json` is for programs",
            ));
        }
        let terminal = ratatui::try_init()
            .map_err(|error| Failure::failed(format!("the terminal cannot be used: {error}")))?;
        Ok(Self { terminal })
    }

    fn show(&mut self, top: &Top) -> Result<(), Failure> {
        self.terminal.draw(|frame| view::draw(frame, top)).map_err(|error| Failure::output(&error))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows until `q`, a signal, or the end of the terminal.
///
/// # Errors
/// When there is no terminal, or the daemon cannot be reached at the start. Later it is asked again and again.
pub async fn top(client: &Client, arguments: &TopArgs) -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::failed(format!("signals cannot be received: {error}"));
    let started = Instant::now();
    let mut top = Top::default();
    // Before the screen is cleared for it.
    if !io::stdout().is_terminal() {
        return Screen::enter().map(drop);
    }
    top.take_status(client.status().await?, started.elapsed());
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let (news_to, mut news) = mpsc::channel(64);
    let refresh = std::sync::Arc::new(Notify::new());
    tokio::spawn(ask(client.clone(), arguments.interval, refresh.clone(), news_to.clone()));
    tokio::spawn(listen(client.clone(), news_to.clone()));
    let mut screen = Screen::enter()?;
    let mut keys = EventStream::new();
    loop {
        screen.show(&top)?;
        tokio::select! {
            Some(one) = news.recv() => match one {
                News::Status(Ok(status)) => top.take_status(status, started.elapsed()),
                News::Status(Err(error)) => top.take_error(error.to_string()),
                News::Event(line) => top.take_event(line),
                News::Done(outcome) => top.take_outcome(outcome.map_err(|error| error.to_string())),
            },
            key = keys.next() => match key {
                Some(Ok(TerminalEvent::Key(key))) if key.kind != KeyEventKind::Release => match top.press(key) {
                    Some(Command::Quit) => return Ok(()),
                    Some(Command::Refresh) => refresh.notify_one(),
                    Some(Command::SetAdmin { service, backend, state }) => {
                        let (client, news_to) = (client.clone(), news_to.clone());
                        let refresh = refresh.clone();
                        tokio::spawn(async move {
                            let done = set_admin(&client, &service, &backend, state).await;
                            refresh.notify_one();
                            // An error means that the screen is gone.
                            let _ = news_to.send(News::Done(done)).await;
                        });
                    }
                    None => {}
                },
                // Such as another size: drawn anew.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Failure::failed(format!("the terminal cannot be read: {error}"))),
                None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// Asks for the state at each interval, or when told to.
async fn ask(client: Client, interval: Duration, refresh: std::sync::Arc<Notify>, to: mpsc::Sender<News>) {
    loop {
        // Either ends the wait.
        let _ = tokio::time::timeout(interval, refresh.notified()).await;
        if to.send(News::Status(client.status().await)).await.is_err() {
            return;
        }
    }
}

/// Hears events, and goes on with another daemon when this one goes away.
async fn listen(client: Client, to: mpsc::Sender<News>) {
    loop {
        if let Ok(mut lines) = client.events().await {
            while let Ok(line) = lines.next().await {
                let shown = serde_json::from_str::<Event>(&line).map_or(line, |event| event_line(&event));
                if to.send(News::Event(shown)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
        if to.is_closed() {
            return;
        }
    }
}

async fn set_admin(
    client: &Client,
    service: &str,
    backend: &str,
    state: AdminState,
) -> Result<String, ClientError> {
    let change = client.set_admin(backend, Some(service), state).await?;
    let word = admin(change.state).0;
    Ok(if change.backends.is_empty() {
        format!("{service}/{backend}: already {word}")
    } else {
        format!("{}: {word}", change.backends.join(", "))
    })
}
