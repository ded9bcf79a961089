//! `/v1/models`.

use serde::Serialize;
use utoipa::ToSchema;

/// The models that are served.
#[derive(Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// One entry per name.
    pub data: Vec<ModelEntry>,
}

/// One name of a model.
#[derive(Serialize, ToSchema)]
pub struct ModelEntry {
    /// What to send as `model`.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// `ponder`.
    pub owned_by: &'static str,
    /// Longest prompt and answer together, in tokens.
    pub max_model_len: usize,
    /// What it is.
    pub meta: ModelMeta,
}

/// What a model is.
#[derive(Serialize, ToSchema)]
pub struct ModelMeta {
    /// Its name in its files.
    pub name: String,
    /// Its family.
    pub family: &'static str,
    /// Context that it was made for.
    pub n_ctx_train: usize,
    /// Entries of its vocabulary.
    pub n_vocab: usize,
    /// Bytes of its weights.
    pub size: u64,
    /// Where it runs.
    pub device: String,
}
