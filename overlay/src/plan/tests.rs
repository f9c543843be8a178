mod goldens;
mod model;
mod properties;
