//! Names of a data folder's files: one to each, however it is spelled.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The path in one spelling: `./a//b` is `a/b`.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

/// The name of a file in the folder `dir`: its path from there, however `path` is spelled and
/// whichever links it leads over, as long as they stay there. A file elsewhere may have several.
pub fn name_in(dir: &Path, path: &Path) -> PathBuf {
    let place = dir.join(path);
    let root = dir.canonicalize().ok();
    // the file itself, or the last of the folders above it that is still in `dir`
    let within = |above: &Path| {
        let found = above.canonicalize().ok()?;
        let begin = found.strip_prefix(root.as_deref()?).ok()?;
        Some(plain(&begin.join(place.strip_prefix(above).ok()?)))
    };
    place.ancestors().find_map(within).unwrap_or_else(|| plain(path))
}

/// Gives each file the first of its `names` in the folder `dir`, absolute ones being last: files
/// outside of it, or behind links that lead there, may have several. Not so in the hub's cache, where
/// files are kept by content: two that are equal are two, as they are in a folder of copies.
pub fn name_alike(dir: &Path, mut names: Vec<&mut PathBuf>) {
    let file = |name: &Path| {
        let file = dir.join(name).canonicalize().ok()?;
        let is_blob = file.parent().is_some_and(|folder| folder.ends_with("blobs"));
        (!is_blob).then_some(file)
    };
    let files: Vec<Option<PathBuf>> = names.iter().map(|name| file(name)).collect();
    let mut first: BTreeMap<&Path, PathBuf> = BTreeMap::new();
    for (name, file) in names.iter().zip(&files) {
        let Some(file) = file else { continue };
        let first = first.entry(file).or_insert_with(|| (**name).clone());
        if (name.is_absolute(), &**name) < (first.is_absolute(), &*first) {
            first.clone_from(name);
        }
    }
    for (name, file) in names.iter_mut().zip(&files) {
        if let Some(first) = file.as_deref().and_then(|file| first.get(file)) {
            name.clone_from(first);
        }
    }
}
