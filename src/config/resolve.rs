pub fn load(_p: &std::path::Path) -> Result<super::Config, Vec<super::Mistake>> { Err(vec![]) }
