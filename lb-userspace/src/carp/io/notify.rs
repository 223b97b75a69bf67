//! The operator's commands: run one after the other, apart from the protocol.

use std::process::Stdio;
use std::time::Duration;

use log::{debug, warn};
use tokio::process::Command;
use tokio::sync::mpsc;

/// A command that takes longer is killed, or the next change would never be told.
const LIMIT: Duration = Duration::from_secs(60);

/// A change of state, for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Program and its first arguments; the name of the vhid and its state follow.
    pub command: Vec<String>,
    pub name: String,
    /// `master`, `backup`, `init`.
    pub state: &'static str,
    /// Name and value.
    pub environment: Vec<(&'static str, String)>,
}

/// Runs the commands of one vhid in the order of its changes. Dropping it lets those finish that were given.
#[derive(Clone, Debug)]
pub struct Notifier(mpsc::UnboundedSender<Notice>);

impl Notifier {
    /// Must be called in a tokio runtime.
    pub fn start() -> (Self, tokio::task::JoinHandle<()>) {
        let (to, mut notices) = mpsc::unbounded_channel::<Notice>();
        let task = tokio::spawn(async move {
            while let Some(notice) = notices.recv().await {
                run(&notice).await;
            }
        });
        (Self(to), task)
    }

    pub fn tell(&self, notice: Notice) {
        // The receiver lives as long as the runtime does.
        let _ = self.0.send(notice);
    }
}

async fn run(notice: &Notice) {
    let Some((program, arguments)) = notice.command.split_first() else { return };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args([notice.name.as_str(), notice.state])
        .envs(notice.environment.iter().map(|(name, value)| (name, value.as_str())))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let about = || format!("notify command {program} of carp.{} for {}", notice.name, notice.state);
    match tokio::time::timeout(LIMIT, command.status()).await {
        Ok(Ok(status)) if status.success() => debug!("{} is done", about()),
        Ok(Ok(status)) => warn!("{} failed: {status}", about()),
        Ok(Err(error)) => warn!("{} cannot be run: {error}", about()),
        Err(_) => warn!("{} took longer than {} s and was killed", about(), LIMIT.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commands_run_in_order_with_their_arguments() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("said");
        let script = "sleep $1; shift; echo $MATAPA_CARP_VHID $* >> \"$0\"";
        let (notifier, done) = Notifier::start();
        for (state, pause) in [("backup", "0.2"), ("master", "0")] {
            notifier.tell(Notice {
                command: ["sh", "-c", script, file.to_str().unwrap(), pause].map(str::to_owned).to_vec(),
                name: "mail".to_owned(),
                state,
                environment: vec![("MATAPA_CARP_VHID", "10".to_owned())],
            });
        }
        drop(notifier);
        done.await.unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "10 mail backup\n10 mail master\n");
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_stops_nobody() {
        let (notifier, done) = Notifier::start();
        let command = vec!["/nonexistent/notify".to_owned()];
        notifier.tell(Notice { command, name: "mail".to_owned(), state: "init", environment: vec![] });
        drop(notifier);
        done.await.unwrap();
    }
}
