-- l2sp.lua - the regulariser of the same name (perigee/regularize/l2sp.lua) while tasks follow each other: its
-- reference is the model as each task began with it ("previous"), or the pre-trained one ("pretrained").

return require("perigee.continual").regularized("l2sp", 0.1)
