//! `/v1/models`.

use actix_web::HttpResponse;
use actix_web::web::{Data, Path};

use super::reply;
use crate::http::error::ApiError;
use crate::http::state::{Served, State};
use crate::http::wire::models::{ModelEntry, ModelList, ModelMeta};
use crate::opened::describe;

fn entry(model: &Served, name: &str) -> ModelEntry {
    let (config, sizing) = (model.engine.config(), model.engine.sizing());
    ModelEntry {
        id: name.into(),
        object: "model",
        created: model.created,
        owned_by: "ponder",
        max_model_len: model.engine.max_model_len(),
        meta: ModelMeta {
            name: config.name.clone(),
            family: config.family.name,
            n_ctx_train: config.context,
            n_vocab: config.vocab,
            size: sizing.plan.weights,
            device: describe(model.engine.device()),
        },
    }
}

/// The models that are served, under all their names.
#[utoipa::path(get, path = "/v1/models", tag = "models",
    responses((status = 200, body = ModelList), crate::http::openapi::Refusals))]
pub async fn list(state: Data<State>) -> HttpResponse {
    let data = state.all_names().map(|(model, name)| entry(model, name)).collect();
    reply(&ModelList { object: "list", data }, &[])
}

/// One of them.
#[utoipa::path(get, path = "/v1/models/{name}", tag = "models", params(("name" = String, Path, description = "Its name")),
    responses((status = 200, body = ModelEntry), crate::http::openapi::Lookups))]
pub async fn one(state: Data<State>, name: Path<String>) -> Result<HttpResponse, ApiError> {
    let (model, name) = state.model(Some(name.as_str()))?;
    Ok(reply(&entry(model, &name), &[]))
}
