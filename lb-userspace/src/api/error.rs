//! Refusals as HTTP: every answer outside 2xx is an [`ErrorBody`].

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::types::ErrorBody;
use crate::control::request::Refusal;

/// A status code and the sentence that goes with it.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub body: ErrorBody,
}

impl ApiError {
    /// An error of one sentence.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { error: error.into(), details: Vec::new() } }
    }

    /// The request makes no sense as it stands.
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let error = refusal.to_string();
        let (status, details) = match refusal {
            Refusal::NotFound(_) => (StatusCode::NOT_FOUND, Vec::new()),
            Refusal::Invalid(_) => (StatusCode::BAD_REQUEST, Vec::new()),
            Refusal::Configuration(lines) => (StatusCode::UNPROCESSABLE_ENTITY, lines),
            Refusal::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
        };
        Self { status, body: ErrorBody { error, details } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
