-- registry.lua - the data sets that pg.data.load knows, a row each.
--
--   name, title   what pg.data.load and a table call it
--   classes       how many
--   folders       what it may be called below a place that is searched ("." is the place itself), or whole paths
--   layouts       in the order in which they are tried: {mark = a file or folder in it, or several; layout = what is
--                 where; read = function(folder, part, options, row); counts = pictures of each part, where the row's
--                 do not hold; own_val = true: with ldifs = true, too, the layout's own validation part}
--   counts        pictures of each part, and with that the parts that there are
--   base          the folder that the paths in a CoOp list (option `list`) start from
--   zhou          the CoOp list of it, which the few-shot protocol takes where it lies in the folder or the one above
--   side          of the pictures, where they are small files read at once
--   unread        {mark, what to take instead}
--   download, package, licence, citation
-- Licences are what the authors' pages say in short; the page decides.

local arrays = require "perigee.data.sets.arrays"
local folders = require "perigee.data.sets.folders"

local CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
local IDX = { "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "train-images.idx3-ubyte",
  "train-images.idx3-ubyte.gz", "t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz", "t10k-images.idx3-ubyte",
  "t10k-images.idx3-ubyte.gz" }
local IDX_LAYOUT = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k, plain or .gz"

-- Data sets of CoOp's benchmark whose parts are its list's, which lies beside the pictures as its DATASETS.md says.
local function coop(row)
  row.counts = { train = row.parts[1], val = row.parts[2], test = row.parts[3] }
  row.layouts = { { mark = row.zhou, read = folders.coop,
    layout = ("%s/%s/ and %s/%s"):format(row.folders[1], row.base, row.folders[1], row.zhou) } }
  row.download = row.download .. "; list: https://github.com/KaiyangZhou/CoOp (DATASETS.md)"
  return row
end

return {
  { name = "cifar10", title = "CIFAR-10", classes = 10, side = 32, counts = { train = 50000, test = 10000 },
    folders = { "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10", "CIFAR10", "cifar-10", "CIFAR-10" },
    layouts = {
      { mark = { "data_batch_1.bin", "test_batch.bin" }, read = arrays.cifar10,
        layout = "cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin and batches.meta.txt" },
      { mark = { "train/airplane", "test/airplane" }, read = folders.small,
        layout = "cifar10/{train,test}/CLASS/*.png" },
    },
    unread = { { "cifar-10-batches-py", "cifar10/cifar-10-batches-py", "data_batch_1", "cifar10/data_batch_1" },
      "cifar-10-binary.tar.gz" },
    download = CIFAR .. " (cifar-10-binary.tar.gz)", licence = "none stated", citation = "Krizhevsky 2009" },

  { name = "cifar100", title = "CIFAR-100", classes = 100, side = 32, counts = { train = 50000, test = 10000 },
    folders = { "cifar-100-binary", "cifar100/cifar-100-binary", "cifar100", "CIFAR100", "cifar-100", "CIFAR-100" },
    layouts = {
      { mark = { "train.bin", "test.bin" }, read = arrays.cifar100,
        layout = "cifar-100-binary/{train,test}.bin and fine_label_names.txt" },
      { mark = { "train/apple", "test/apple" }, read = folders.small, layout = "cifar100/{train,test}/CLASS/*.png" },
    },
    unread = { { "cifar-100-python", "cifar100/cifar-100-python", "cifar100/meta" }, "cifar-100-binary.tar.gz" },
    download = CIFAR .. " (cifar-100-binary.tar.gz)", licence = "none stated", citation = "Krizhevsky 2009" },

  { name = "mnist", title = "MNIST", classes = 10, counts = { train = 60000, test = 10000 },
    folders = { "mnist", "MNIST", "MNIST/raw", "mnist/MNIST/raw", "mnist/raw" },
    layouts = { { mark = IDX, read = arrays.mnist, layout = "mnist/ or MNIST/raw/ with " .. IDX_LAYOUT } },
    download = "http://yann.lecun.com/exdb/mnist/", licence = "CC BY-SA 3.0",
    citation = "LeCun, Bottou, Bengio, Haffner 1998" },

  { name = "svhn", title = "SVHN", classes = 10, counts = { train = 73257, test = 26032 },
    folders = { "svhn", "SVHN", "." },
    layouts = { { mark = { "train_32x32.mat", "test_32x32.mat" }, read = arrays.svhn,
      layout = "svhn/{train,test}_32x32.mat (MATLAB 5, as downloaded)" } },
    download = "http://ufldl.stanford.edu/housenumbers/", licence = "non-commercial",
    citation = "Netzer, Wang, Coates, Bissacco, Wu, Ng 2011" },

  { name = "eurosat", title = "EuroSAT", classes = 10, counts = { train = 21600, val = 2700, test = 2700 },
    folders = { "eurosat", "EuroSAT", "." }, base = "2750", zhou = "split_zhou_EuroSAT.json",
    layouts = {
      { mark = "EuroSAT_splits/train", read = folders.eurosat_splits, own_val = true,
        layout = "EuroSAT_splits/{train,val,test}/CLASS/*" },
      { mark = "2750/AnnualCrop", read = folders.eurosat, own_val = true, layout = "eurosat/2750/CLASS/*.jpg" },
    },
    download = "https://github.com/phelber/EuroSAT (EuroSAT.zip, RGB)", licence = "MIT",
    citation = "Helber, Bischke, Dengel, Borth 2019" },

  { name = "dtd", title = "DTD", classes = 47, counts = { train = 1880, val = 1880, test = 1880 },
    folders = { "dtd", "dtd/dtd", "DTD" }, base = "images", zhou = "split_zhou_DescribableTextures.json",
    layouts = { { mark = "labels/train1.txt", read = folders.dtd,
      layout = "dtd/images/CLASS/*.jpg and dtd/labels/{train,val,test}1.txt" } },
    download = "https://www.robots.ox.ac.uk/~vgg/data/dtd/ (dtd-r1.0.1.tar.gz)", licence = "research",
    citation = "Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi 2014" },

  { name = "gtsrb", title = "GTSRB", classes = 43, counts = { train = 26640, test = 12630 },
    folders = { "gtsrb", "GTSRB", "." },
    layouts = {
      { mark = { "GTSRB/Training", "Training/00000" }, read = folders.gtsrb,
        layout = "gtsrb/GTSRB/Training/NUMBER/*.ppm, gtsrb/GTSRB/Final_Test/Images/*.ppm, gtsrb/GT-final_test.csv" },
      { mark = { "GTSRB/Final_Training/Images", "Final_Training/Images" }, read = folders.gtsrb,
        counts = { train = 39209, test = 12630 },
        layout = "gtsrb/GTSRB/Final_Training/Images/NUMBER/*.ppm, tests alike" },
      { mark = { "GTSRB/Final_Test/Images", "Final_Test/Images" }, read = folders.gtsrb, layout = "tests alone" },
    },
    download = "https://benchmark.ini.rub.de/gtsrb_dataset.html", licence = "research",
    citation = "Stallkamp, Schlipsing, Salmen, Igel 2012" },

  { name = "resisc45", title = "RESISC45", classes = 45, counts = { train = 18900, val = 6300, test = 6300 },
    folders = { "resisc45", "RESISC45", "." }, base = "NWPU-RESISC45",
    layouts = { { mark = "NWPU-RESISC45", read = folders.resisc45,
      layout = "resisc45/NWPU-RESISC45/CLASS/*.jpg, and resisc45/resisc45-{train,val,test}.txt if at hand" } },
    download = "https://doi.org/10.1109/JPROC.2017.2675998 (NWPU-RESISC45.rar)", licence = "research",
    citation = "Cheng, Han, Lu 2017" },

  { name = "stanford_cars", title = "Stanford Cars", classes = 196, counts = { train = 8144, test = 8041 },
    folders = { "stanford_cars", "StanfordCars", "cars" }, base = ".", zhou = "split_zhou_StanfordCars.json",
    layouts = { { mark = "cars.csv", read = folders.cars,
      layout = "stanford_cars/cars.csv, cars_train/*.jpg, cars_test/*.jpg" } },
    unread = { { "stanford_cars/devkit", "stanford_cars/cars_annos.mat", "StanfordCars/devkit", "cars/devkit", "devkit",
      "cars_annos.mat" }, "cars.csv, made of it as docs/06-data.md shows" },
    download = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html", licence = "non-commercial research",
    citation = "Krause, Stark, Deng, Fei-Fei 2013" },

  { name = "sun397", title = "SUN397", classes = 397, counts = { train = 19850, test = 19850 },
    folders = { "SUN397", "sun397/SUN397", "sun397" }, base = ".", zhou = "split_zhou_SUN397.json",
    layouts = {
      { mark = "a/abbey", read = folders.sun397,
        layout = "SUN397/a/abbey/*.jpg and so on, SUN397/ClassName.txt, SUN397/{Training,Testing}_01.txt" },
      { mark = { "train", "val" }, read = folders.parts, layout = "sun397/{train,val}/CLASS/*.jpg" },
    },
    download = "https://vision.princeton.edu/projects/2010/SUN/ (SUN397.tar.gz, Partitions.zip)", licence = "research",
    citation = "Xiao, Hays, Ehinger, Oliva, Torralba 2010" },

  { name = "imagenet", title = "ImageNet", classes = 1000, counts = { train = 1281167, test = 50000 },
    folders = { "imagenet", "ImageNet", "imagenet/images", "ILSVRC2012", "ILSVRC/Data/CLS-LOC",
      "imagenet/ILSVRC/Data/CLS-LOC" },
    layouts = { { mark = { "train/n01440764", "val/n01440764" }, read = folders.imagenet,
      layout = "imagenet/train/WNID/*.JPEG, and imagenet/val/WNID/*.JPEG or imagenet/val/*.JPEG with val.txt" } },
    download = "https://image-net.org/download.php (ILSVRC2012)", licence = "non-commercial research",
    citation = "Russakovsky and others 2015" },

  coop { name = "caltech101", title = "Caltech-101", classes = 100, parts = { 4128, 1649, 2465 },
    folders = { "caltech-101", "caltech101" }, base = "101_ObjectCategories", zhou = "split_zhou_Caltech101.json",
    download = "https://data.caltech.edu/records/mzrjq-6wc02 (caltech-101.zip)", licence = "CC BY 4.0",
    citation = "Fei-Fei, Fergus, Perona 2004" },

  coop { name = "oxford_pets", title = "Oxford-IIIT Pet", classes = 37, parts = { 2944, 736, 3669 },
    folders = { "oxford_pets" }, base = "images", zhou = "split_zhou_OxfordPets.json",
    download = "https://www.robots.ox.ac.uk/~vgg/data/pets/ (images.tar.gz)", licence = "CC BY-SA 4.0",
    citation = "Parkhi, Vedaldi, Zisserman, Jawahar 2012" },

  coop { name = "oxford_flowers", title = "Oxford 102 Flowers", classes = 102, parts = { 4093, 1633, 2463 },
    folders = { "oxford_flowers" }, base = "jpg", zhou = "split_zhou_OxfordFlowers.json",
    download = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ (102flowers.tgz)", licence = "none stated",
    citation = "Nilsback, Zisserman 2008" },

  coop { name = "food101", title = "Food-101", classes = 101, parts = { 50500, 20200, 30300 },
    folders = { "food-101", "food101" }, base = "images", zhou = "split_zhou_Food101.json",
    download = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/ (food-101.tar.gz)", licence = "research",
    citation = "Bossard, Guillaumin, Van Gool 2014" },

  coop { name = "ucf101", title = "UCF101, middle frames", classes = 101, parts = { 7639, 1898, 3783 },
    folders = { "ucf101" }, base = "UCF-101-midframes", zhou = "split_zhou_UCF101.json",
    download = "CoOp's UCF-101-midframes.zip", licence = "none stated", citation = "Soomro, Zamir, Shah 2012" },

  { name = "fgvc_aircraft", title = "FGVC-Aircraft, variants", classes = 100,
    counts = { train = 3334, val = 3333, test = 3333 }, folders = { "fgvc_aircraft", "fgvc-aircraft-2013b/data" },
    layouts = { { mark = "variants.txt", read = folders.aircraft,
      layout = "fgvc_aircraft/images/*.jpg, fgvc_aircraft/variants.txt, images_variant_{train,val,test}.txt" } },
    download = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ (fgvc-aircraft-2013b.tar.gz)",
    licence = "non-commercial research", citation = "Maji, Kannala, Rahtu, Blaschko, Vedaldi 2013" },

  { name = "fashion_mnist", title = "Fashion-MNIST", classes = 10, counts = { train = 60000, test = 10000 },
    folders = { "fashion-mnist", "fashion_mnist", "FashionMNIST/raw", "fashion_mnist/FashionMNIST/raw" },
    layouts = { { mark = IDX, read = arrays.fashion_mnist,
      layout = "fashion-mnist/ or FashionMNIST/raw/ with " .. IDX_LAYOUT } },
    download = "https://github.com/zalandoresearch/fashion-mnist", package = "dataset-fashion-mnist", licence = "MIT",
    citation = "Xiao, Rasul, Vollgraf 2017" },

  { name = "openclipart", title = "Open Clip Art", classes = 13, counts = { pretrain = 1371, train = 683, test = 685 },
    folders = { "/usr/share/openclipart/png" },
    layouts = { { mark = "animals", read = folders.openclipart, layout = "SUBJECT/.../*.png" } },
    download = "https://openclipart.org", package = "openclipart-png", licence = "public domain",
    citation = "Open Clip Art Library" },

  { name = "tuxpaint", title = "Tux Paint's stamps", classes = 8, counts = { train = 354, test = 359 },
    folders = { "/usr/share/tuxpaint/stamps" },
    layouts = { { mark = "animals", read = folders.tuxpaint, layout = "SUBJECT/.../*.png" } },
    download = "https://tuxpaint.org/stamps/", package = "tuxpaint-stamps-default", licence = "GPL",
    citation = "Tux Paint" },
}
