#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);
impl Secret { pub fn new(s: String) -> Self { Self(s) } pub fn expose(&self) -> &str { &self.0 } }
impl std::fmt::Debug for Secret { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("***") } }
