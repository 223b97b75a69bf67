//! The grammar of relayd.conf(5), tables and redirects of it. It takes a little more than relayd does: commas and line
//! breaks where relayd wants none, and keywords as names.

use super::Surroundings;
use super::lexer::{Kind, Lexer, Token};
use super::source::{DEEPEST, Located, MOST_INCLUDES, Place};
use super::syntax::{Check, Document, Host, HttpExpect, Listener, Mode, Note, Redirect, Table, Target};

/// Seconds.
const DEFAULT_INTERVAL: u64 = 10;
/// Milliseconds.
const DEFAULT_TIMEOUT: u64 = 200;
/// Numbers beyond are of no use anywhere, and sums of them stay small.
const LARGEST: i64 = i32::MAX as i64;

/// An error has been reported; the rest of the statement is skipped.
#[derive(Debug)]
struct Stop;

type Parsed<T> = Result<T, Stop>;

/// Reads everything. Errors are in the lexer's sources.
pub(super) fn parse(lexer: Lexer, surroundings: &Surroundings<'_>) -> (Document, Lexer) {
    let mut parser = Parser {
        lexer,
        surroundings,
        next: None,
        depth: 0,
        document: Document::default(),
        interval: DEFAULT_INTERVAL,
        timeout: DEFAULT_TIMEOUT,
    };
    parser.file();
    (parser.document, parser.lexer)
}

struct Parser<'a> {
    lexer: Lexer,
    surroundings: &'a Surroundings<'a>,
    next: Option<Token>,
    /// Braces that are open in what was taken.
    depth: usize,
    document: Document,
    interval: u64,
    timeout: u64,
}

impl Parser<'_> {
    fn peek(&mut self) -> &Token {
        let lexer = &mut self.lexer;
        self.next.get_or_insert_with(|| lexer.next())
    }

    fn take(&mut self) -> Token {
        let token = match self.next.take() {
            Some(token) => token,
            None => self.lexer.next(),
        };
        match token.kind {
            Kind::Sign('{') => self.depth += 1,
            Kind::Sign('}') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        token
    }

    fn place(&mut self) -> Place {
        self.peek().place
    }

    fn at_end(&mut self) -> bool {
        self.peek().kind == Kind::End
    }

    fn is_word(&mut self, word: &str) -> bool {
        matches!(&self.peek().kind, Kind::Word(text) if text == word)
    }

    fn is_sign(&mut self, sign: char) -> bool {
        self.peek().kind == Kind::Sign(sign)
    }

    /// Takes this word if it comes next.
    fn word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.take();
        }
        found
    }

    /// One of these words, if it comes next.
    fn any_word(&mut self, words: &[&'static str]) -> Option<&'static str> {
        let found = words.iter().copied().find(|word| self.is_word(word))?;
        self.take();
        Some(found)
    }

    fn sign(&mut self, sign: char) -> bool {
        let found = self.is_sign(sign);
        if found {
            self.take();
        }
        found
    }

    fn newlines(&mut self) {
        while self.peek().kind == Kind::Newline {
            self.take();
        }
    }

    fn error<T>(&mut self, place: Place, message: impl Into<String>, help: &str) -> Parsed<T> {
        self.lexer.sources.error(place, message, help);
        Err(Stop)
    }

    /// What comes next is not what it should be.
    fn unexpected<T>(&mut self, expected: &str) -> Parsed<T> {
        let token = self.peek().clone();
        let found = match &token.kind {
            Kind::Word(text) | Kind::Quoted(text) => format!("\"{}\"", clip(text)),
            Kind::Number(number) => number.to_string(),
            Kind::Sign(sign) => format!("\"{}\"", sign.escape_debug()),
            Kind::Newline => "the end of the line".to_owned(),
            Kind::End => "the end of the file".to_owned(),
        };
        self.error(token.place, format!("{found} where {expected} should be"), "")
    }

    fn expect_word(&mut self, word: &'static str) -> Parsed<()> {
        if self.word(word) { Ok(()) } else { self.unexpected(&format!("\"{word}\"")) }
    }

    fn expect_sign(&mut self, sign: char) -> Parsed<()> {
        if self.sign(sign) { Ok(()) } else { self.unexpected(&format!("\"{sign}\"")) }
    }

    /// A word, a text in quotes, or a number as it was written.
    fn text(&mut self, expected: &str) -> Parsed<Located<String>> {
        let place = self.place();
        let value = match &self.peek().kind {
            Kind::Word(text) | Kind::Quoted(text) => text.clone(),
            Kind::Number(number) => number.to_string(),
            _ => return self.unexpected(expected),
        };
        self.take();
        Ok(Located { value, place })
    }

    fn number(&mut self, expected: &str) -> Parsed<Located<u64>> {
        let place = self.place();
        let Kind::Number(number) = self.peek().kind else { return self.unexpected(expected) };
        self.take();
        match u64::try_from(number).ok().filter(|_| number <= LARGEST) {
            Some(value) => Ok(Located { value, place }),
            None => self.error(place, format!("{number} is no {expected}"), ""),
        }
    }

    fn port_of(&mut self, text: &str, place: Place) -> Parsed<u16> {
        let number = text.parse::<u16>().ok().filter(|port| *port != 0);
        match number.or_else(|| (self.surroundings.port)(text)) {
            Some(port) => Ok(port),
            None => self.error(
                place,
                format!("there is no port {}", clip(text)),
                "write a number from 1 to 65535, or a name of /etc/services",
            ),
        }
    }

    /// One port, or the first and last of a range.
    fn ports(&mut self) -> Parsed<(u16, u16)> {
        self.expect_word("port")?;
        let text = self.text("a port")?;
        match text.value.split_once(':') {
            None => self.port_of(&text.value, text.place).map(|port| (port, port)),
            Some((first, last)) => {
                let first = self.port_of(first, text.place)?;
                let last = self.port_of(last, text.place)?;
                if first > last {
                    return self.error(text.place, "the range of ports goes backwards", "");
                }
                Ok((first, last))
            }
        }
    }

    fn left_out(&mut self, place: Place, text: impl Into<String>) {
        self.document.left_out.push(Note { place, text: text.into() });
    }

    // What stands outside of braces.

    fn file(&mut self) {
        loop {
            self.newlines();
            if self.at_end() {
                return;
            }
            if self.statement().and_then(|()| self.end_of_statement()).is_err() {
                self.recover(0);
            }
        }
    }

    fn end_of_statement(&mut self) -> Parsed<()> {
        match self.peek().kind {
            Kind::Newline | Kind::End => Ok(()),
            _ => self.unexpected("the end of the line"),
        }
    }

    /// Skips the rest of the line, and of the block that begins in it.
    fn recover(&mut self, depth: usize) {
        self.lexer.lenient = true;
        loop {
            let end = match self.peek().kind {
                Kind::End => true,
                Kind::Newline => self.depth <= depth,
                Kind::Sign('}') => self.depth == depth && depth > 0,
                _ => false,
            };
            if end {
                break;
            }
            self.take();
        }
        self.lexer.lenient = false;
    }

    fn statement(&mut self) -> Parsed<()> {
        let place = self.place();
        if self.word("include") {
            return self.include();
        }
        let Kind::Word(word) = &self.peek().kind else { return self.unexpected("a statement") };
        let word = word.clone();
        self.take();
        if self.sign('=') {
            let value = self.text("a value")?;
            self.lexer.define(&word, value.value);
            return Ok(());
        }
        match word.as_str() {
            "interval" => self.interval = self.number("number of seconds")?.value,
            "timeout" => self.timeout = self.number("number of milliseconds")?.value,
            "table" => return self.table(),
            "redirect" => return self.redirect(),
            "log" => self.log(place)?,
            "prefork" => {
                self.number("number of processes")?;
                self.left_out(place, "prefork: there are no relay processes; nothing takes its place");
            }
            "socket" => {
                self.text("a path")?;
                self.left_out(
                    place,
                    "socket: relayctl's; Matapa's is control.socket, /run/matapa/control.sock unless given",
                );
            }
            "snmp" | "agentx" => {
                while !matches!(self.peek().kind, Kind::Newline | Kind::End) {
                    self.take();
                }
                self.left_out(
                    place,
                    format!("{word}: there is no SNMP; control.metrics serves Prometheus, `matapa monitor --json` events"),
                );
            }
            "relay" => return self.skip_block(place, "relay", RELAY),
            "router" => return self.skip_block(place, "router", ROUTER),
            "protocol" => return self.skip_block(place, "protocol", PROTOCOL),
            "http" | "tcp" | "dns" if self.word("protocol") => {
                return self.skip_block(place, "protocol", PROTOCOL);
            }
            other => {
                let message = format!("unknown statement \"{}\"", clip(other));
                let help = "known are table, redirect, include, interval, timeout, log, prefork, socket, snmp, agentx, \
                            relay, protocol, router, and NAME = \"VALUE\"";
                return self.error(place, message, help);
            }
        }
        Ok(())
    }

    fn log(&mut self, place: Place) -> Parsed<()> {
        let text = if self.word("state") {
            self.expect_word("changes")?;
            "log state changes: the daemon always does; `matapa monitor` shows them as they happen"
        } else if self.word("host") {
            self.expect_word("checks")?;
            "log host checks: `matapa -v run` logs them, `matapa show backends` has the last result"
        } else if self.word("connection") {
            self.word("errors");
            "log connection: that is for relays; `matapa show flows` and `matapa trace` show connections"
        } else if self.any_word(&["updates", "all"]).is_some() {
            "log: the daemon logs changes of state; `matapa monitor` shows them as they happen"
        } else {
            return self.unexpected("state changes, host checks or connection");
        };
        self.left_out(place, text);
        Ok(())
    }

    fn include(&mut self) -> Parsed<()> {
        let file = self.text("the name of a file")?;
        let Located { value: name, place } = file;
        if self.lexer.is_open(&name) {
            return self.error(place, format!("{} includes itself", clip(&name)), "remove the include");
        }
        if self.lexer.depth() > DEEPEST || self.lexer.sources.len() > MOST_INCLUDES {
            let message = format!("{} is one include too many, or too deep", clip(&name));
            return self.error(place, message, "put the files together");
        }
        match (self.surroundings.read)(&name) {
            Ok(text) => {
                self.lexer.include(&name, text);
                // Nothing after the name has been looked at; the included text begins in a line of its own.
                self.next = Some(Token { kind: Kind::Newline, place });
                Ok(())
            }
            Err(reason) => {
                let help = "included files are looked for by their path, and beside the file itself";
                self.error(place, format!("cannot read {}: {reason}", clip(&name)), help)
            }
        }
    }

    /// Something in braces that Matapa has no equal for.
    fn skip_block(&mut self, place: Place, what: &str, instead: &str) -> Parsed<()> {
        self.lexer.lenient = true;
        let mut name = String::new();
        while !matches!(self.peek().kind, Kind::Newline | Kind::End | Kind::Sign('{')) {
            if let Kind::Word(text) | Kind::Quoted(text) = self.take().kind {
                name = format!(" \"{}\"", clip(&text));
            }
        }
        let opened = self.sign('{');
        while opened && self.depth > 0 && !self.at_end() {
            self.take();
        }
        self.lexer.lenient = false;
        if !opened {
            return self.unexpected("\"{\"");
        }
        if self.depth > 0 {
            return self.error(place, format!("this {what} is not closed"), "add `}` at its end");
        }
        self.left_out(place, format!("{what}{name}: {instead}"));
        Ok(())
    }

    // Tables.

    fn table_name(&mut self) -> Parsed<Located<String>> {
        self.expect_sign('<')?;
        let name = self.text("the name of a table")?;
        self.expect_sign('>')?;
        Ok(name)
    }

    fn table(&mut self) -> Parsed<()> {
        let name = self.table_name()?;
        let mut table = Table { name, disabled: false, timeout: self.timeout, hosts: Vec::new() };
        let mut parts = 0;
        loop {
            if self.word("disable") {
                table.disabled = true;
            } else if self.sign('{') {
                self.hosts(&mut table.hosts)?;
                parts += 1;
            } else if parts == 0 {
                return self.unexpected("\"{\" and the table's hosts");
            } else {
                break;
            }
        }
        let (value, place) = (&table.name.value, table.name.place);
        if table.hosts.is_empty() {
            let message = format!("table <{}> is empty", clip(value));
            return self.error(place, message, "write the hosts in braces: { 198.51.100.11 198.51.100.12 }");
        }
        if self.document.tables.iter().any(|other| other.name.value == *value) {
            return self.error(
                place,
                format!("there are two tables <{}>", clip(value)),
                "rename one of them",
            );
        }
        self.document.tables.push(table);
        Ok(())
    }

    /// After the opening brace.
    fn hosts(&mut self, hosts: &mut Vec<Host>) -> Parsed<()> {
        loop {
            while matches!(self.peek().kind, Kind::Newline | Kind::Sign(',')) {
                self.take();
            }
            if self.sign('}') {
                return Ok(());
            }
            if self.word("include") {
                self.include()?;
                continue;
            }
            let name = self.text("a host or \"}\"")?;
            let mut host = Host { name, retry: 0, parent: None, priority: None, ttl: None };
            loop {
                let place = self.place();
                if self.word("retry") {
                    let retry = self.number("number of retries")?.value;
                    host.retry = u32::try_from(retry).unwrap_or(u32::MAX);
                } else if self.word("parent") {
                    self.number("number of a host")?;
                    host.parent = Some(place);
                } else if self.word("priority") {
                    self.number("priority")?;
                    host.priority = Some(place);
                } else if self.word("ip") {
                    self.expect_word("ttl")?;
                    self.number("TTL")?;
                    host.ttl = Some(place);
                } else {
                    break;
                }
            }
            hosts.push(host);
        }
    }

    // Redirects.

    fn redirect(&mut self) -> Parsed<()> {
        let name = self.text("the name of the redirect")?;
        self.expect_sign('{')?;
        let mut redirect = Redirect {
            name,
            disabled: None,
            sticky: None,
            session_timeout: None,
            listeners: Vec::new(),
            targets: Vec::new(),
        };
        let mut complete = true;
        loop {
            self.newlines();
            if self.sign('}') {
                break;
            }
            if self.at_end() {
                let place = redirect.name.place;
                return self.error(place, "this redirect is not closed", "add `}` at its end");
            }
            let end = self
                .option(&mut redirect)
                .and_then(|()| if self.is_sign('}') { Ok(()) } else { self.end_of_statement() });
            if end.is_err() {
                complete = false;
                self.recover(1);
            }
        }
        if complete {
            self.check_redirect(&redirect)?;
        }
        self.document.redirects.push(redirect);
        Ok(())
    }

    fn check_redirect(&mut self, redirect: &Redirect) -> Parsed<()> {
        let (name, place) = (clip(&redirect.name.value), redirect.name.place);
        if redirect.listeners.is_empty() {
            let help = "add `listen on 203.0.113.10 port 25`";
            return self.error(place, format!("redirect \"{name}\" has no `listen`"), help);
        }
        if redirect.targets.is_empty() {
            let help = "add `forward to <TABLE> check tcp`";
            return self.error(place, format!("redirect \"{name}\" has no `forward to`"), help);
        }
        if self.document.redirects.iter().any(|other| other.name.value == redirect.name.value) {
            return self.error(place, format!("there are two redirects \"{name}\""), "rename one of them");
        }
        Ok(())
    }

    fn option(&mut self, redirect: &mut Redirect) -> Parsed<()> {
        let place = self.place();
        if self.word("include") {
            return self.include();
        }
        if self.word("listen") {
            let listener = self.listener()?;
            redirect.listeners.push(listener);
        } else if self.word("forward") {
            let target = self.target(place, false)?;
            self.add_target(redirect, target)?;
        } else if self.word("route") {
            let target = self.target(place, true)?;
            self.add_target(redirect, target)?;
        } else if self.word("disable") {
            redirect.disabled = Some(place);
        } else if self.word("sticky-address") {
            redirect.sticky = Some(place);
        } else if self.word("session") {
            self.expect_word("timeout")?;
            redirect.session_timeout = Some(self.number("number of seconds")?);
        } else if self.is_word("match") || self.is_word("pftag") {
            self.word("match");
            self.expect_word("pftag")?;
            self.text("a tag")?;
            self.left_out(
                place,
                "pftag: forwarded packets do not pass the host's packet filter, so there is nothing to tag; \
                 filter in front of the gateway or on the servers",
            );
        } else if self.is_word("tag") || self.is_word("transparent") {
            return self.error(
                place,
                "this belongs to relays",
                "a redirect always keeps the client's address; remove it",
            );
        } else {
            return self.unexpected(
                "listen on, forward to, route to, disable, sticky-address, session timeout, pftag or include",
            );
        }
        Ok(())
    }

    fn listener(&mut self) -> Parsed<Listener> {
        self.expect_word("on")?;
        let address = self.text("an address")?;
        let protocol =
            if self.is_word("port") { "tcp".to_owned() } else { self.text("a protocol or \"port\"")?.value };
        let (first, last) = self.ports()?;
        let mut interface = None;
        loop {
            let place = self.place();
            if self.word("interface") {
                interface = Some(self.text("an interface")?);
            } else if self.word("pflog") {
                self.left_out(
                    place,
                    "pflog: `matapa trace` shows packets, `matapa show counters` counts them",
                );
            } else if self.is_word("tls") || self.is_word("ssl") {
                return self.error(
                    place,
                    "TLS belongs to relays",
                    "a redirect passes TLS through; remove it",
                );
            } else {
                break;
            }
        }
        Ok(Listener { address, protocol, first, last, interface })
    }

    fn add_target(&mut self, redirect: &mut Redirect, target: Target) -> Parsed<()> {
        let Some(first) = redirect.targets.first() else {
            redirect.targets.push(target);
            return Ok(());
        };
        if redirect.targets.len() > 1 {
            return self.error(
                target.place,
                "a third table in a redirect",
                "relayd takes two: the one in use, and its backup",
            );
        }
        if first.route != target.route {
            let help = "use `forward to` for both, or `route to`";
            return self.error(target.place, "the backup is reached in another way", help);
        }
        redirect.targets.push(target);
        Ok(())
    }

    fn target(&mut self, place: Place, route: bool) -> Parsed<Target> {
        self.expect_word("to")?;
        let name = self.table_name()?;
        let Some(table) = self.document.tables.iter().position(|table| table.name.value == name.value) else {
            let message = format!("there is no table <{}>", clip(&name.value));
            return self.error(name.place, message, "define it above the redirect");
        };
        let mut check = None;
        let mut target = Target {
            place,
            route,
            table,
            port: None,
            timeout: None,
            interval: self.interval,
            check: Located { value: Check::Tcp, place },
            demote: None,
            mode: None,
            key: None,
            interface: None,
        };
        loop {
            let place = self.place();
            if self.word("check") || self.is_word("binary") {
                check = Some(Located { value: self.check()?, place });
            } else if self.is_word("port") {
                let (first, last) = self.ports()?;
                if first != last {
                    let help = "give one port, or none to keep the one that the client connected to";
                    return self.error(place, "servers have one port, not a range", help);
                }
                target.port = Some(first);
            } else if self.word("timeout") {
                target.timeout = Some(self.number("number of milliseconds")?.value);
            } else if self.word("interval") {
                target.interval = self.number("number of seconds")?.value;
            } else if self.word("demote") {
                self.text("a group of interfaces")?;
                target.demote = Some(place);
            } else if self.word("mode") {
                self.mode(place, &mut target)?;
            } else if self.word("interface") {
                target.interface = Some(self.text("an interface")?);
            } else {
                break;
            }
        }
        let Some(check) = check else {
            return self.error(place, "no `check`, which relayd wants in a redirect", "add `check tcp`");
        };
        target.check = check;
        let (interval, timeout) =
            (target.interval, target.timeout.unwrap_or(self.document.tables[table].timeout));
        if timeout >= interval.saturating_mul(1000) {
            let message = format!("a timeout of {timeout} ms is not below the interval of {interval} s");
            return self.error(place, message, "write a shorter timeout or a longer interval");
        }
        Ok(target)
    }

    fn mode(&mut self, place: Place, target: &mut Target) -> Parsed<()> {
        const MODES: [(&str, Mode); 6] = [
            ("roundrobin", Mode::RoundRobin),
            ("random", Mode::Random),
            ("least-states", Mode::LeastStates),
            ("source-hash", Mode::SourceHash),
            ("hash", Mode::Hash),
            ("loadbalance", Mode::LoadBalance),
        ];
        let word = self.any_word(&MODES.map(|(word, _)| word));
        let Some((_, mode)) = MODES.into_iter().find(|(known, _)| Some(*known) == word) else {
            return self.unexpected("roundrobin, random, least-states or source-hash");
        };
        target.mode = Some(Located { value: mode, place });
        let key = self.place();
        let follows = ["check", "binary", "port", "timeout", "interval", "demote", "mode", "interface"];
        if !follows.into_iter().any(|word| self.is_word(word))
            && matches!(self.peek().kind, Kind::Word(_) | Kind::Quoted(_) | Kind::Number(_))
        {
            self.take();
            target.key = Some(key);
        }
        Ok(())
    }

    fn check(&mut self) -> Parsed<Check> {
        let place = self.place();
        Ok(match self.any_word(&["icmp", "tcp", "tls", "ssl", "http", "https", "send", "binary", "script"]) {
            Some("icmp") => Check::Icmp,
            Some("tcp") => Check::Tcp,
            Some("tls" | "ssl") => Check::Tls,
            Some("script") => Check::Script(self.text("the path of a script")?.value),
            Some("send") => {
                let (send, expect, tls) = self.dialogue()?;
                Check::Send { send, expect: expect.value, tls }
            }
            Some("binary") => {
                self.expect_word("send")?;
                let (send, expect, tls) = self.dialogue()?;
                for text in send.iter().chain([&expect.value]) {
                    if text.len() % 2 == 1 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                        return self.error(place, "not pairs of hexadecimal digits", "");
                    }
                }
                Check::Binary { send, expect: expect.value, tls }
            }
            Some(http) => {
                let path = self.text("a path")?.value;
                let host = if self.word("host") { Some(self.text("a host name")?.value) } else { None };
                let expect = if self.word("code") {
                    let code = self.number("status")?;
                    let status = u16::try_from(code.value).ok().filter(|code| (100..600).contains(code));
                    let Some(status) = status else {
                        return self.error(code.place, format!("{} is no status of HTTP", code.value), "");
                    };
                    HttpExpect::Code(status)
                } else if self.word("digest") {
                    self.text("a digest")?;
                    HttpExpect::Digest
                } else {
                    return self.unexpected("code or digest");
                };
                Check::Http { tls: http == "https", path, host, expect }
            }
            None => return self.unexpected("icmp, tcp, tls, http, https, send, binary or script"),
        })
    }

    fn dialogue(&mut self) -> Parsed<(Option<String>, Located<String>, bool)> {
        let send = if self.word("nothing") { None } else { Some(self.text("what to send")?.value) };
        self.expect_word("expect")?;
        let expect = self.text("what to expect")?;
        let tls = self.any_word(&["tls", "ssl"]).is_some();
        Ok((send, expect, tls))
    }
}

const RELAY: &str = "Matapa does not read what connections carry; put HAProxy, nginx or a TLS proxy on machines of their \
                     own and a [services.NAME] in front of them, or, for a plain TCP relay, write a service with \
                     forward = \"snat\"";
const PROTOCOL: &str = "it belongs to relays";
const ROUTER: &str = "Matapa does not change routes; use a routing daemon (BIRD, FRR) with BFD, or ip-route(8) with \
                      several next hops";

/// Short enough for a message.
fn clip(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().count() > 60 {
        short.push_str("...");
    }
    short
}
