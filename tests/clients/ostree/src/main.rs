//! `ostree container …`, as ostree-ext has it: Debian's ostree is built without.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    ostree_ext::cli::run_from_iter(std::env::args_os()).await
}
