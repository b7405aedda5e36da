-- folders.lua - data sets whose pictures are files: class folders, and lists that say which file is of which part.
--
-- A reader takes the folder, the part that is wanted, the options of pg.data.load and the registry's row, and gives
-- {files = paths, labels = list, 1-based, classes = list}. No picture is opened here. Class folders are read in the
-- order of their names, byte by byte, and files likewise, as torchvision's ImageFolder has them: a split drawn by
-- position then means the same pictures.

local lfs = require "lfs"
local cjson = require "cjson"
local util = require "perigee.util"
local pg = require "perigee"
local SPLIT = require("perigee.data.random").SPLIT

local folders = {}
local DEEPEST = 8 -- folders below a class folder; a link to a folder above would never end
local PICTURE = { png = true, jpg = true, jpeg = true, ppm = true }

local function is(kind, path) return lfs.attributes(path, "mode") == kind end

-- ---- what is on the disk -------------------------------------------------------------------------------------------

-- The names in a folder: files that look like pictures, and folders, both sorted. What a file is, its content decides.
local function entries(path)
  local files, inner = {}, {}
  for name in lfs.dir(path) do
    local ending = name:match "%.(%w+)$"
    if name:sub(1, 1) ~= "." then -- with a dot begins what editors and archives leave behind
      if ending and PICTURE[ending:lower()] then files[#files + 1] = name
      elseif is("directory", path .. "/" .. name) then inner[#inner + 1] = name end
    end
  end
  table.sort(files)
  table.sort(inner)
  return files, inner
end

local function walk(path, found, depth)
  local files, inner = entries(path)
  for _, name in ipairs(files) do found[#found + 1] = path .. "/" .. name end
  for _, name in ipairs(depth < DEEPEST and inner or {}) do walk(path .. "/" .. name, found, depth + 1) end
  return found
end

-- Every picture below the class folders of `root`; the folders' names are the classes.
local function by_class(root)
  util.check(is("directory", root), "%s is not there: it must hold a folder of pictures for each class", root)
  local _, classes = entries(root)
  local files, labels = {}, {}
  for c, name in ipairs(classes) do
    local before = #files
    walk(root .. "/" .. name, files, 1)
    util.check(#files > before, "%s/%s holds no picture (.png, .jpg, .jpeg or .ppm)", root, name)
    for i = before + 1, #files do labels[i] = c end
  end
  util.check(#classes >= 2, "%s has %d class folders, needs 2 or more", root, #classes)
  return { files = files, labels = labels, classes = classes }
end

-- The lines of a text file without their ends; empty ones are left out.
local function lines(path, what)
  local file, list = io.open(path, "rb"), {}
  util.check(file, "%s is not there: %s", path, what)
  for line in file:lines() do
    line = line:match "^%s*(.-)%s*$"
    if line ~= "" then list[#list + 1] = line end
  end
  file:close()
  return list
end

local function numbers_of(classes)
  local number = {}
  for c, name in ipairs(classes) do number[name] = c end
  return number
end

local function spaced(classes, change)
  local list = {}
  for c, name in ipairs(classes) do list[c] = (change and change(name) or name):gsub("_", " ") end
  return list
end

-- Adds root/name with its label; the list that names it says so when it is not there.
local function add(set, root, name, label, list)
  local path = root .. "/" .. name
  util.check(is("file", path), "%s is not there, and %s lists it", path, list)
  set.files[#set.files + 1], set.labels[#set.labels + 1] = path, label
end

-- ---- parts ---------------------------------------------------------------------------------------------------------

local function choose(set, positions)
  local part = { files = {}, labels = {}, classes = set.classes }
  for i, from in ipairs(positions) do part.files[i], part.labels[i] = set.files[from], set.labels[from] end
  return part
end

-- A part of class folders that no list divides: by fixed fractions of every class, the same on every machine.
local function fixed(set, fractions, part)
  local members = {}
  for c = 1, #set.classes do members[c] = {} end
  for i, c in ipairs(set.labels) do table.insert(members[c], i) end
  return choose(set, require("perigee.data").split_positions(members, fractions, SPLIT)[part])
end

--- One of CoOp's lists, split_zhou_NAME.json: {train = {{path, label from 0, class name}, ...}, val =, test =}.
-- @param path  the file
-- @param root  the folder that its paths start from
-- @param part  "train", "val" or "test"
-- @return {files =, labels =, classes =}
-- @raises one line naming the list, and the file where one that it lists is not there
function folders.listed(path, root, part)
  local file = io.open(path, "rb")
  util.check(file, "%s is not there: it lists files and labels", path)
  local ok, lists = pcall(cjson.decode, file:read "*a")
  file:close()
  util.check(ok and type(lists) == "table" and type(lists[part]) == "table" and #lists[part] > 0,
    "%s: it must be JSON {train =, val =, test = lists of [path, label, class]}", path)
  local set, most = { files = {}, labels = {}, classes = {} }, 0
  for _, name in ipairs { "train", "val", "test" } do -- a class may be missing from one part
    for i, item in ipairs(type(lists[name]) == "table" and lists[name] or {}) do
      local label = type(item) == "table" and item[2]
      util.check(type(label) == "number" and label % 1 == 0 and label >= 0 and label < 1e6
        and type(item[1]) == "string" and type(item[3]) == "string",
        "%s: entry %d of %s must be [path, label from 0, class]", path, i, name)
      most = math.max(most, label + 1)
      set.classes[label + 1] = item[3]:gsub("_", " ")
      if name == part then add(set, root, item[1], label + 1, path) end
    end
  end
  for c = 1, most do util.check(set.classes[c], "%s: label %d has no picture in any part", path, c - 1) end
  return set
end

--- The same, the list lying in the data set's own folder.
function folders.coop(folder, part, _, row)
  return folders.listed(folder .. "/" .. row.zhou, folder .. "/" .. row.base, part)
end

-- ---- readers -------------------------------------------------------------------------------------------------------

--- train/CLASS/* and test/CLASS/*, or val/CLASS/* where no test/ is there.
function folders.parts(folder, part)
  local root = folder .. "/" .. part
  if part == "test" and not is("directory", root) then root = folder .. "/val" end
  local set = by_class(root)
  set.classes = spaced(set.classes)
  return set
end

--- The same with small pictures of one size, which are read at once.
function folders.small(folder, part, _, row)
  local set = folders.parts(folder, part)
  util.check(#set.classes == row.classes, "%s/%s has %d class folders, and there are %d classes", folder, part,
    #set.classes, row.classes)
  local n, side = #set.files, row.side
  local images, bar = pg.empty(n, side, side, 3, { dtype = "uint8" }),
    require("perigee.progress").new(row.name .. ": reading pictures", n, { unit = "picture" })
  local to, ffi = images:data(), require "ffi"
  for i, path in ipairs(set.files) do
    local picture = pg.image.load(path)
    util.check(picture:size(1) == side and picture:size(2) == side, "%s: %d x %d pixels, and they must be %d x %d",
      path, picture:size(2), picture:size(1), side, side)
    ffi.copy(to + (i - 1) * side * side * 3, picture:data(), side * side * 3)
    picture:free()
    bar:step(i)
  end
  bar:done()
  return { images = images, labels = set.labels, classes = set.classes }
end

-- "AnnualCrop" -> "annual crop"
local function words(name) return (name:gsub("(%l)(%u)", "%1 %2"):lower()) end

--- 2750/CLASS/*.jpg, which nobody divided: 80% train, 10% val, 10% test of every class, drawn once.
function folders.eurosat(folder, part)
  local set = fixed(by_class(folder .. "/2750"), { train = 0.8, val = 0.1, test = 0.1 }, part)
  set.classes = spaced(set.classes, words)
  return set
end

--- EuroSAT_splits/{train,val,test}/CLASS/*, the folders that LDIFS' authors made.
function folders.eurosat_splits(folder, part)
  local set = by_class(folder .. "/EuroSAT_splits/" .. part)
  set.classes = spaced(set.classes, words)
  return set
end

--- images/CLASS/*.jpg and labels/{train,val,test}FOLD.txt.
function folders.dtd(folder, part, options)
  local fold = options.fold or 1
  util.check(type(fold) == "number" and fold % 1 == 0 and fold >= 1 and fold <= 10,
    "dtd: fold must be a whole number from 1 to 10, got %s", tostring(fold))
  local list = ("%s/labels/%s%d.txt"):format(folder, part, fold)
  local set = { files = {}, labels = {} }
  local _, classes = entries(folder .. "/images")
  local number = numbers_of(classes)
  for _, name in ipairs(lines(list, "it lists CLASS/FILE of this part")) do
    local label = number[name:match "^([^/]+)/" or ""]
    util.check(label, "%s: '%s' is in no class folder of %s/images", list, name, folder)
    add(set, folder .. "/images", name, label, list)
  end
  set.classes = spaced(classes)
  return set
end

local SIGNS = { "speed limit 20 km/h", "speed limit 30 km/h", "speed limit 50 km/h", "speed limit 60 km/h",
  "speed limit 70 km/h", "speed limit 80 km/h", "end of speed limit 80 km/h", "speed limit 100 km/h",
  "speed limit 120 km/h", "no passing", "no passing for trucks", "right of way at the next crossing", "priority road",
  "give way", "stop", "no vehicles", "no trucks", "no entry", "general danger", "curve to the left",
  "curve to the right", "double curve", "uneven road", "slippery road", "road narrows on the right", "road works",
  "traffic lights", "pedestrians", "children crossing", "bicycles crossing", "ice or snow", "wild animals crossing",
  "end of all limits", "turn right ahead", "turn left ahead", "ahead only", "straight on or right",
  "straight on or left", "keep right", "keep left", "roundabout", "end of no passing", "end of no passing for trucks" }

-- "Filename;...;ClassId" lines as {name, class from 0}, after the heading.
local function signs_listed(path)
  local list = {}
  for i, line in ipairs(lines(path, "it lists pictures and their classes")) do
    local name, class = line:match "^([^;]+);.*;%s*(%d+)$"
    util.check(name or i == 1, "%s: line %d must be Filename;...;ClassId", path, i)
    if name then
      util.check(tonumber(class) < #SIGNS, "%s: class %s of %s is outside 0..%d", path, class, name, #SIGNS - 1)
      list[#list + 1] = { name, tonumber(class) }
    end
  end
  return list
end

local function first_of(kind, folder, names)
  for _, name in ipairs(names) do
    if is(kind, folder .. "/" .. name) then return folder .. "/" .. name end
  end
  return folder .. "/" .. names[1]
end

-- Training pictures, where the number of a class folder is the class; its GT-NUMBER.csv, if there, lists them all.
local function signs_training(root)
  local set = by_class(root)
  local _, numbers = entries(root)
  for i, c in ipairs(set.labels) do
    local class = tonumber(numbers[c])
    util.check(class and class % 1 == 0 and class >= 0 and class < #SIGNS,
      "%s/%s: a class folder's name must be a number from 00000 to 00042", root, numbers[c])
    set.labels[i] = class + 1
  end
  for _, number in ipairs(numbers) do
    local csv = ("%s/%s/GT-%s.csv"):format(root, number, number)
    for _, sign in ipairs(is("file", csv) and signs_listed(csv) or {}) do
      util.check(is("file", ("%s/%s/%s"):format(root, number, sign[1])), "%s/%s/%s is not there, and %s lists it", root,
        number, sign[1], csv)
    end
  end
  return set
end

--- GTSRB/Training/NUMBER/*.ppm or GTSRB/Final_Training/Images/NUMBER/*.ppm; GTSRB/Final_Test/Images/*.ppm and
--- GT-final_test.csv.
function folders.gtsrb(folder, part)
  local set
  if part == "train" then
    set = signs_training(first_of("directory", folder, { "GTSRB/Training", "GTSRB/Final_Training/Images", "Training",
      "Final_Training/Images" }))
  else
    set = { files = {}, labels = {} }
    local root = first_of("directory", folder, { "GTSRB/Final_Test/Images", "Final_Test/Images" })
    local csv = first_of("file", folder, { "GT-final_test.csv", "GTSRB/GT-final_test.csv",
      "GTSRB/Final_Test/Images/GT-final_test.csv", "Final_Test/Images/GT-final_test.csv" })
    for _, sign in ipairs(signs_listed(csv)) do add(set, root, sign[1], sign[2] + 1, csv) end
  end
  set.classes = SIGNS
  return set
end

--- images/NUMBER.jpg by images_variant_{train,val,test}.txt, lines of a number and a variant's name, and variants.txt.
function folders.aircraft(folder, part)
  local list = ("%s/images_variant_%s.txt"):format(folder, part)
  local classes = lines(folder .. "/variants.txt", "it lists the classes")
  local set, number = { files = {}, labels = {}, classes = classes }, numbers_of(classes)
  for i, line in ipairs(lines(list, "it lists pictures and their variants")) do
    local picture, name = line:match "^(%d+)%s+(.+)$"
    util.check(number[name], "%s: line %d must be NUMBER VARIANT, a variant of variants.txt, got '%s'", list, i,
      line:sub(1, 60))
    add(set, folder .. "/images", picture .. ".jpg", number[name], list)
  end
  return set
end

--- NWPU-RESISC45/CLASS/*.jpg, by resisc45-{train,val,test}.txt where they lie beside it; else 60% train, 20% val, 20%
--- test of every class, drawn once.
function folders.resisc45(folder, part)
  local root, set = folder .. "/NWPU-RESISC45"
  local list = ("%s/resisc45-%s.txt"):format(folder, part)
  if is("file", list) then
    local all, wanted = by_class(root), {}
    for _, name in ipairs(lines(list)) do wanted[name] = true end
    set = { files = {}, labels = {}, classes = all.classes }
    for i, path in ipairs(all.files) do
      local name = path:match "[^/]+$"
      if wanted[name] then
        wanted[name], set.files[#set.files + 1], set.labels[#set.labels + 1] = nil, path, all.labels[i]
      end
    end
    local missing = next(wanted)
    util.check(not missing, "%s lists %s, which is in no class folder of %s", list, tostring(missing), root)
  else
    set = fixed(by_class(root), { train = 0.6, val = 0.2, test = 0.2 }, part)
  end
  set.classes = spaced(set.classes)
  return set
end

--- cars.csv, made of the annotations (docs/06-data.md says how): a heading, then file,class from 1,part,name of class.
function folders.cars(folder, part)
  local path = folder .. "/cars.csv"
  local set, most = { files = {}, labels = {}, classes = {} }, 0
  for i, line in ipairs(lines(path, "it lists file,class,part,name")) do
    local name, class, its_part, title = line:match "^([^,]+),(%d+),(%a+),(.+)$"
    util.check(name or i == 1, "%s: line %d must be file,class from 1,train or test,name of the class", path, i)
    class = tonumber(class)
    if name then
      util.check(class >= 1 and class <= 1000, "%s: line %d: class %d is outside 1..196", path, i, class)
      most = math.max(most, class)
      set.classes[class] = title
      if its_part == part then add(set, folder, name, class, path) end
    end
  end
  for c = 1, most do util.check(set.classes[c], "%s: class %d of %d has no picture", path, c, most) end
  return set
end

--- SUN397/LETTER/CLASS/*.jpg, or SUN397/LETTER/CLASS/KIND/*.jpg, by ClassName.txt and Training_NN.txt, Testing_NN.txt.
function folders.sun397(folder, part, options)
  local fold = options.fold or 1
  util.check(type(fold) == "number" and fold % 1 == 0 and fold >= 1 and fold <= 10,
    "sun397: fold must be a whole number from 1 to 10, got %s", tostring(fold))
  local file = ("%s_%02d.txt"):format(part == "train" and "Training" or "Testing", fold)
  local list = first_of("file", folder, { file, "Partitions/" .. file, "../" .. file, "../Partitions/" .. file })
  local named = first_of("file", folder, { "ClassName.txt", "Partitions/ClassName.txt", "../ClassName.txt",
    "../Partitions/ClassName.txt" })
  local set, classes = { files = {}, labels = {} }, lines(named, "it lists the classes, such as /a/abbey")
  local number = numbers_of(classes)
  for _, name in ipairs(lines(list, "it lists the pictures of this part: Partitions.zip of the authors' page")) do
    local label = number[name:match "^(.*)/[^/]+$" or ""]
    util.check(label, "%s: '%s' is of no class of %s", list, name, named)
    add(set, folder, name:gsub("^/", ""), label, list)
  end
  set.classes = spaced(classes, function(name) -- /c/church/indoor is an indoor church, as in CoOp
    local noun, kind = name:match "^/%w/([^/]+)/?(.*)$"
    return noun and (kind ~= "" and kind .. " " .. noun or noun) or name
  end)
  return set
end

-- ---- ImageNet ------------------------------------------------------------------------------------------------------

-- "n01440764 tench, Tinca tinca" lines, if such a file is there: wnid -> "tench".
local function synsets(folder)
  local titles = {}
  local path = first_of("file", folder, { "classnames.txt", "LOC_synset_mapping.txt", "../classnames.txt",
    "../../../LOC_synset_mapping.txt" })
  for i, line in ipairs(is("file", path) and lines(path) or {}) do
    local wnid, title = line:match "^(n%d+)%s+([^,]+)"
    util.check(wnid, "%s: line %d must be WNID NAME", path, i)
    titles[wnid] = title
  end
  return titles
end

-- The pictures of a val/ without class folders, by a list: Kaggle's LOC_val_solution.csv (name,WNID box ...), or
-- val.txt (name and WNID, or name and the class from 0 in the order of the WNIDs).
local function flat(folder, wnids)
  local root, set = folder .. "/val", { files = {}, labels = {} }
  local list = first_of("file", folder, { "val.txt", "val/val.txt", "../val.txt", "LOC_val_solution.csv",
    "../../../LOC_val_solution.csv" })
  local number = numbers_of(wnids)
  for i, line in ipairs(lines(list, "val/ has no class folders, and this lists name and class")) do
    local name, class = line:match "^([^%s,]+)[%s,]+(n?%d+)"
    util.check(name or i == 1, "%s: line %d must be a file's name and its class", list, i)
    if name then
      local label = number[class] or not class:find "n" and tonumber(class) + 1
      util.check(label and label <= #wnids, "%s: class %s of %s is none of the %d class folders of %s/train", list,
        class, name, #wnids, folder)
      if not name:find "%.%w+$" then name = name .. ".JPEG" end
      add(set, root, name:match "[^/]+$", label, list)
    end
  end
  return set
end

--- train/WNID/*; the test part is val/: val/WNID/*, or val/* with a list of classes.
function folders.imagenet(folder, part)
  local _, wnids = entries(first_of("directory", folder, { "train", "val" }))
  local set
  if part == "train" then
    set = by_class(folder .. "/train")
  else
    util.check(is("directory", folder .. "/val"), "%s/val is not there: its pictures are the test part", folder)
    local _, inner = entries(folder .. "/val")
    if #inner == 0 then set = flat(folder, wnids)
    else
      set = by_class(folder .. "/val")
      util.check(table.concat(inner, " ") == table.concat(wnids, " "),
        "%s/val and %s/train must have the same class folders: %d and %d", folder, folder, #inner, #wnids)
    end
  end
  local titles = synsets(folder)
  set.classes = {}
  for c, wnid in ipairs(wnids) do set.classes[c] = titles[wnid] or wnid end
  return set
end

-- ---- what Debian packages bring ------------------------------------------------------------------------------------

-- pg.data.NAME's pictures in the fixed parts that the tasks use: a test picture of one is a test picture of the other.
local function packaged(name, fractions)
  return function(folder, part, options)
    local data = require "perigee.data"
    local set = data[name] { path = folder, size = options.size or 32 }
    set = data.split(set, fractions, SPLIT)[part]
    set.labels = set.labels:totable()
    return set
  end
end

folders.openclipart = packaged("openclipart", { pretrain = 0.5, train = 0.25, test = 0.25 })
folders.tuxpaint = packaged("tuxpaint", { train = 0.5, test = 0.5 })

return folders
