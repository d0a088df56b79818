pub struct Template;
