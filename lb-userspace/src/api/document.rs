//! The API's own description, in OpenAPI 3.1: made from the handlers and from the types that they answer with.

use std::collections::BTreeMap;
use std::fmt;

use utoipa::openapi::path::ParameterIn;
use utoipa::openapi::schema::{Object, Schema};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Ref, RefOr, Response,
    ResponseBuilder,
};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use super::types::ErrorBody;

/// What is not about single routes.
pub(super) fn frame() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Matapa")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "What the command line asks the daemon, as HTTP over its Unix socket. Version 1: fields are added, never \
             renamed or removed. No request has a body.",
        ))
        .build();
    // What only refusals and parameters refer to.
    let components = Components::builder()
        .schema(ErrorBody::name(), ErrorBody::schema())
        .schema(AdminAction::name(), AdminAction::schema())
        .schema(CarpAction::name(), CarpAction::schema())
        .schema(ServiceAction::name(), ServiceAction::schema())
        .build();
    OpenApiBuilder::new().info(info).components(Some(components)).build()
}

/// What can be done with a backend.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "the handler reads the words, for a refusal that names them")]
pub(super) enum AdminAction {
    Enable,
    Disable,
    Drain,
}

/// What can be done with a service.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "the handler reads the words, for a refusal that names them")]
pub(super) enum ServiceAction {
    Enable,
    Disable,
}

/// What a gateway can be told about shared addresses.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "the handler reads the words, for a refusal that names them")]
pub(super) enum CarpAction {
    Promote,
    Demote,
    Release,
}

fn refusal(status: u16, description: &str) -> (String, RefOr<Response>) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name()))).build();
    let response =
        ResponseBuilder::new().description(description).content("application/json", content).build();
    (status.to_string(), RefOr::T(response))
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident { $($status:literal: $description:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                BTreeMap::from([$(refusal($status, $description)),+])
            }
        }
    )+};
}

refusals! {
    /// Of every route.
    Refused {
        400: "The request makes no sense as it stands; nothing was changed",
        403: "This socket only answers questions; nothing was changed",
        500: "The kernel or the system refused",
    }
    /// Of those that take a name.
    NotFound { 404: "There is nothing of this name; the text says what there is" }
    /// Of those that read the configuration file.
    BadConfiguration { 422: "The configuration file has errors, each of them a line of `details`; nothing was changed" }
    /// Of those that tell how it is.
    Unavailable { 503: "It is not so; `details` has the reasons" }
}

/// The description, and what the server itself needs of it.
#[derive(Debug)]
pub(super) struct Document {
    pub json: String,
    pub routes: Vec<Route>,
}

/// One operation, for people who mistyped one.
#[derive(Clone, Debug)]
pub(super) struct Route {
    method: &'static str,
    /// With `{name}` for what varies.
    path: String,
    /// As a person would type it.
    shown: String,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.shown)
    }
}

impl Document {
    pub fn new(document: &OpenApi) -> Self {
        let json = document.to_pretty_json().unwrap_or_else(|error| {
            log::error!("the API's description cannot be written: {error}");
            "{}".to_owned()
        });
        let routes =
            document.paths.paths.iter().flat_map(|(path, item)| routes(document, path, item)).collect();
        Self { json, routes }
    }

    /// The methods that a path takes.
    pub fn methods(&self, path: &str) -> Vec<&'static str> {
        let same = |template: &str| {
            let (template, path): (Vec<_>, Vec<_>) =
                (template.split('/').collect(), path.split('/').collect());
            template.len() == path.len()
                && template.iter().zip(&path).all(|(a, b)| a == b || a.starts_with('{'))
        };
        // A path without anything that varies is meant before one with it.
        let plain = self.routes.iter().any(|route| route.path == path);
        let fits = |route: &&Route| if plain { route.path == path } else { same(&route.path) };
        self.routes.iter().filter(fits).map(|route| route.method).collect()
    }
}

fn routes(document: &OpenApi, path: &str, item: &PathItem) -> Vec<Route> {
    let operations = [("GET", &item.get), ("POST", &item.post), ("PUT", &item.put), ("DELETE", &item.delete)];
    let route = |(method, operation): (&'static str, &Option<utoipa::openapi::path::Operation>)| {
        let mut shown = path.to_owned();
        let mut separator = '?';
        for parameter in operation.as_ref()?.parameters.iter().flatten() {
            let RefOr::T(parameter) = parameter else { continue };
            if parameter.parameter_in == ParameterIn::Path {
                let words = parameter.schema.as_ref().and_then(|schema| words(document, schema));
                if let Some(words) = words {
                    shown = shown
                        .replace(&format!("{{{}}}", parameter.name), &format!("{{{}}}", words.join("|")));
                }
            } else {
                shown.push(separator);
                shown.push_str(&format!("{}={}", parameter.name, parameter.name.to_uppercase()));
                separator = '&';
            }
        }
        Some(Route { method, path: path.to_owned(), shown })
    };
    operations.into_iter().filter_map(route).collect()
}

/// What an enumeration knows.
fn words(document: &OpenApi, schema: &RefOr<Schema>) -> Option<Vec<String>> {
    let schema = match schema {
        RefOr::T(schema) => schema,
        RefOr::Ref(reference) => {
            let name = reference.ref_location.rsplit('/').next()?;
            match document.components.as_ref()?.schemas.get(name)? {
                RefOr::T(schema) => schema,
                RefOr::Ref(_) => return None,
            }
        }
    };
    let Schema::Object(Object { enum_values: Some(values), .. }) = schema else { return None };
    Some(values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect())
}
