//! Reading what concerns TLS.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::DnsName;

use super::super::diagnostics::{At, Errors};
use super::super::document::{self, Entry, Known};
use super::super::values::quote;
use super::super::{Smtp, Tls};
use super::optional;

/// Ten years: certificates that live longer are not warned of earlier.
const MOST_DAYS: u32 = 3650;

pub(super) fn read(errors: &mut Errors, known: &Known<'_>) -> Option<Tls> {
    let defaults = Tls::default();
    let server_name = optional(errors, known, "server_name", read_server_name);
    let verify = optional(errors, known, "verify", document::boolean);
    let ca_file = optional(errors, known, "ca_file", read_ca_file);
    let days = optional(errors, known, "expiry_warning_days", |errors, entry| {
        document::integer(errors, entry, 0..=MOST_DAYS)
    });
    if let (Some(Some(false)), Some(entry)) = (verify, known.get("ca_file")) {
        let message = "`ca_file` means nothing with `verify = false`";
        errors.at(entry.key.span, message).help("remove one of the two");
        return None;
    }
    Some(Tls {
        server_name: server_name?,
        verify: verify?.unwrap_or(defaults.verify),
        ca_file: ca_file?,
        expiry_warning_days: days?.unwrap_or(defaults.expiry_warning_days),
    })
}

/// [`read`] where `switch` says that TLS is spoken; without it none of TLS's keys may be there.
pub(super) fn read_if(
    errors: &mut Errors,
    known: &Known<'_>,
    spoken: bool,
    switch: &str,
) -> Option<Option<Tls>> {
    if spoken {
        return read(errors, known).map(Some);
    }
    let mut good = true;
    for name in ["server_name", "verify", "ca_file", "expiry_warning_days"] {
        if let Some(entry) = known.get(name) {
            let message = format!("`{name}` means nothing without TLS");
            errors.at(entry.key.span, message).help(format!("add {switch}, or remove it"));
            good = false;
        }
    }
    good.then_some(None)
}

/// `starttls`, `tls`, and what belongs to them.
pub(super) fn read_smtp(errors: &mut Errors, known: &Known<'_>) -> Option<Smtp> {
    let starttls = optional(errors, known, "starttls", document::boolean)?.unwrap_or_default();
    let tls = optional(errors, known, "tls", document::boolean)?.unwrap_or_default();
    if let (true, true, Some(entry)) = (starttls, tls, known.get("starttls")) {
        let message = "both `starttls` and `tls` are given";
        errors.at(entry.key.span, message).help("keep `starttls` for ports 25 and 587, `tls` for port 465");
        return None;
    }
    let read = read_if(errors, known, starttls || tls, "`starttls = true` or `tls = true`")?.map(Arc::new);
    Some(match read {
        Some(tls) if starttls => Smtp::StartTls(tls),
        Some(tls) => Smtp::Tls(tls),
        None => Smtp::Plain,
    })
}

fn read_server_name(errors: &mut Errors, entry: Entry<'_>) -> Option<String> {
    let help = "write the name in the servers' certificates: `server_name = \"www.example.com\"`";
    let name = document::text(errors, "server_name", entry.value, "a name in quotes", help)?;
    if let Some(wrong) = wrong_name(name) {
        errors.at(name.span, wrong).help(help);
        return None;
    }
    Some(name.value.to_owned())
}

fn wrong_name(name: At<&str>) -> Option<String> {
    // RFC 6066 section 3: no addresses, no dot at the end.
    let address = name.value.parse::<std::net::IpAddr>().is_ok();
    let good = !address && !name.value.ends_with('.') && DnsName::try_from(name.value).is_ok();
    (!good).then(|| format!("`server_name` is no host name: {}", quote(name.value)))
}

fn read_ca_file(errors: &mut Errors, entry: Entry<'_>) -> Option<PathBuf> {
    let help = "write the absolute path of a file with certificates in PEM: \
                `ca_file = \"/etc/ssl/certs/internal.pem\"`";
    let text = document::text(errors, "ca_file", entry.value, "a path in quotes", help)?;
    if !text.value.starts_with('/') {
        errors.at(text.span, format!("`ca_file` is no absolute path: {}", quote(text.value))).help(help);
        return None;
    }
    Some(text.value.into())
}
