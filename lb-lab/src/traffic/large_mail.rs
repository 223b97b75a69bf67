//! One large message that is sent slowly, for as long as it is wanted, and then taken or not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};

use super::line::server_name;
use super::paced::{self, Paced, Progress, Shared};
use super::smtp::DOMAIN;
use crate::netns::Netns;

/// Of one line of the message without its end, in bytes.
const LINE: usize = 76;

/// Line `number` of the message, without its end.
fn line(number: u64) -> String {
    format!("{number:010} {:x<1$}", "", LINE - 11)
}

/// What became of the message.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Which server answered 250.
    pub server: String,
    pub lines: u64,
    /// Of the lines, with their ends as they were sent.
    pub bytes: u64,
}

impl Taken {
    /// Whether a server's file of the message has every line once, in order, and nothing after them.
    pub fn is_whole(&self, dump: &str) -> bool {
        let mut lines = dump.lines().skip_while(|text| *text != line(0));
        let all = (0..self.lines).all(|number| lines.next() == Some(&line(number)));
        all && lines.all(str::is_empty)
    }
}

/// A message under way.
#[derive(Debug)]
pub struct LargeMail {
    stop: Arc<AtomicBool>,
    progress: Shared,
    thread: Option<JoinHandle<Result<Result<Taken>>>>,
}

impl LargeMail {
    /// Begins a message from `sender` (before the `@`) through `target`, `rate` bytes per second, which ends with
    /// [`LargeMail::finish`].
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start(netns: &Netns, target: SocketAddr, sender: &str, rate: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Shared::default();
        let (ended, shared, sender) = (Arc::clone(&stop), Arc::clone(&progress), sender.to_owned());
        let thread = netns.thread("large-mail", move || send(target, &sender, rate, shared, &ended))?;
        Ok(Self { stop, progress, thread: Some(thread) })
    }

    pub fn progress(&self) -> Progress {
        paced::look(&self.progress)
    }

    /// Ends the message and waits for the server's 250.
    ///
    /// # Errors
    /// When the connection broke or did not move any more, or the server refused the message.
    pub fn finish(mut self) -> Result<Taken> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("finished twice")?;
        thread.join().map_err(|_| anyhow!("the sender of the large message panicked"))??
    }
}

impl Drop for LargeMail {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send(target: SocketAddr, sender: &str, rate: u32, progress: Shared, stop: &AtomicBool) -> Result<Taken> {
    let mut connection = Paced::connect(target, rate, progress)?;
    let server = server_name(&reply(&mut connection, "220")?);
    for (command, wanted) in [
        (format!("HELO {DOMAIN}"), "250"),
        (format!("MAIL FROM:<{sender}@{DOMAIN}>"), "250"),
        ("RCPT TO:<large@lab.example>".to_owned(), "250"),
        ("DATA".to_owned(), "354"),
    ] {
        connection.say(&format!("{command}\r\n"))?;
        reply(&mut connection, wanted)?;
    }
    connection.say("Subject: large\r\n\r\n")?;
    let (mut lines, mut bytes) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let mut portion = String::with_capacity(connection.portion() + LINE);
        while portion.len() < connection.portion() {
            portion.push_str(&line(lines));
            portion.push_str("\r\n");
            lines += 1;
        }
        bytes += portion.len() as u64;
        connection.send(portion.as_bytes())?;
    }
    connection.say(".\r\n")?;
    reply(&mut connection, "250")?;
    connection.say("QUIT\r\n")?;
    Ok(Taken { server, lines, bytes })
}

fn reply(connection: &mut Paced, wanted: &str) -> Result<String> {
    let answer = connection.answer()?;
    ensure!(answer.starts_with(wanted), "the server answers {answer:?} and not {wanted}");
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_whole_with_every_line_once() {
        let taken = Taken { server: "mx1".to_owned(), lines: 3, bytes: 0 };
        let dump = |lines: &[u64]| {
            let body: String = lines.iter().map(|number| line(*number) + "\n").collect();
            format!("X-Mail-Args: <large@client.example>\nSubject: large\n\n{body}")
        };
        assert!(taken.is_whole(&dump(&[0, 1, 2])));
        for wrong in [&[0, 1][..], &[0, 2], &[0, 1, 1, 2], &[0, 1, 2, 2], &[0, 2, 1], &[1, 2], &[]] {
            assert!(!taken.is_whole(&dump(wrong)), "{wrong:?}");
        }
        assert_eq!(line(7).len(), LINE);
    }
}
